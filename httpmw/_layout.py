from __future__ import annotations


def lay_out(instance: object, *names: str) -> None:
    """
    Settle which attributes the instances of a class keep side by side.

    CPython takes them from the first thirty instances or so. One that comes up later, say in the
    first stack of two layers, costs each instance that has it a dictionary of its own.
    """
    for name in names:
        setattr(instance, name, None)
