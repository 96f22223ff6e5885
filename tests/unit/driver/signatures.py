# SPDX-License-Identifier: Apache-2.0
"""A strict check of a class against the interfaces of Cinder.

Cinder's own test asks ``issubclass``, whose hook (cinder/interface/base.py) collects methods with
``inspect.ismethod``: in Python 3 functions of a class are none, so that it compares nothing.
"""

import inspect

KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def methods(interface):
    """The methods that an interface itself declares, and those of its parents but ``object``."""
    found = {}
    for cls in reversed(interface.__mro__):
        if cls.__module__.startswith("cinder.interface.") and cls.__name__ != "CinderInterface":
            found.update(
                (name, value) for name, value in vars(cls).items() if inspect.isfunction(value)
            )
    return found


def difference(wanted, given):
    """What is wrong with ``given``, or None.

    Every parameter must be there, in order, with its name, kind and default. More parameters may
    follow if the caller can leave them out.
    """
    wanted = list(inspect.signature(wanted).parameters.values())
    given = list(inspect.signature(given).parameters.values())
    for index, parameter in enumerate(wanted):
        if index >= len(given):
            return f"{parameter.name} is missing"
        ours = given[index]
        if (ours.name, ours.kind) != (parameter.name, parameter.kind):
            return f"parameter {index} is {ours}, not {parameter}"
        if ours.default != parameter.default:
            return f"{ours.name} has another default than {parameter}"
    for extra in given[len(wanted) :]:
        if extra.default is inspect.Parameter.empty and extra.kind in (
            *KINDS,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            return f"{extra.name} is more than the interface gives"
    return None


def violations(cls, interface):
    """One line for each method of the interface that ``cls`` lacks or declares differently."""
    lines = []
    for name, wanted in methods(interface).items():
        given = inspect.getattr_static(cls, name, None)
        if isinstance(given, property):
            # The interface shows what is read as an attribute as a method without arguments.
            if list(inspect.signature(wanted).parameters) != ["self"]:
                lines.append(f"{name}: is a property")
        elif not callable(getattr(cls, name, None)):
            lines.append(f"{name}: is missing")
        else:
            wrong = difference(wanted, getattr(cls, name))
            if wrong:
                lines.append(f"{name}: {wrong}")
    return lines
