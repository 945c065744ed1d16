"""The methods of drafting, in one table. Imports neither torch nor transformers."""

from spec.errors import BadInput
from spec.methods.block.method import DFlash, DSpark
from spec.methods.eagle3.method import Eagle3
from spec.methods.method import Json, Method

METHODS: dict[str, Method] = {method.name: method for method in (Eagle3(), DFlash(), DSpark())}
FIRST = "eagle3"  # the method of runs from before there were others, whose settings do not name it


def method_named(name: object) -> Method:
    """`BadInput` if there is none of that name."""
    if not isinstance(name, str) or name not in METHODS:
        raise BadInput(f"config: method={name!r}; it is one of {', '.join(METHODS)}")
    return METHODS[name]


def method_of(config: Json) -> Method:
    """The method of an exported draft, by its `config.json`; `BadInput` if it is none's."""
    architectures = config.get("architectures")
    for method in METHODS.values():
        if architectures == [method.architecture]:
            return method
    known = " or ".join(f"{[method.architecture]} ({method.title})" for method in METHODS.values())
    raise BadInput(f"config.json: architectures is {architectures!r}; a draft that SGLang loads needs {known}")


def method_of_published(config: Json) -> Method:
    """The method of any draft that the server loads, by its `config.json`; `BadInput` if it is none's."""
    architectures = config.get("architectures")
    for method in METHODS.values():
        if architectures in [[name] for name in method.also_called]:
            return method
    return method_of(config)
