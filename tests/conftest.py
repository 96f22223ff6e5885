# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

import hypothesis

# For continuous integration: the same examples each time, so that a change is judged by what it
# changes. Runs by hand draw new ones each time.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
