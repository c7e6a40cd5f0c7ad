"""
See what stands around an application, and what happens to a request on its way through it.

`httpmw show` and `httpmw explain` are commands for this; here it is for Python.
"""

# What imports what: the commands and the inspector import what explains, draws and warns; these
# import the reading and the measuring; those import the model, and the core. Nothing in the core
# imports this package.

from ._client import StartupError
from ._explain import explain
from ._explanation import Explanation, Step
from ._model import Kind, Node, Remark, Scopes, Tree
from ._tree import tree

__all__ = [
    "Explanation",
    "Kind",
    "Node",
    "Remark",
    "Scopes",
    "StartupError",
    "Step",
    "Tree",
    "explain",
    "tree",
]
