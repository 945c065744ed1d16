"""What of the settings is torchtune's: how the command line is read, and the components that they name."""

import inspect

from omegaconf import DictConfig
from torchtune import config
from torchtune.config._errors import InstantiationError
from torchtune.config._utils import _get_component_from_path

from spec import settings
from spec.errors import BadInput
from spec.methods.checks import check_names


def from_command_line() -> DictConfig:
    """`--config FILE key=value ...` as torchtune reads it; the values are still to be checked."""
    read: list[DictConfig] = []
    try:
        with settings.reading():
            config.parse(read.append)()
    except SystemExit as end:  # parse() ends so, whatever it calls
        if end.code:
            raise
    return read[0]


def check(cfg: DictConfig) -> DictConfig:
    """`cfg` itself; `BadInput` for the first component that is none: its own error would be a traceback, and later."""
    for name in settings.COMPONENTS:
        if cfg[name] is not None:
            _check_component(name, cfg[name])
    return cfg


def _check_component(name: str, node: DictConfig) -> None:
    """The callable exists and takes the arguments given."""
    path = node.get("_component_")
    try:
        component = _get_component_from_path(str(path))
        parameters = inspect.signature(component).parameters
    except (InstantiationError, ValueError, TypeError) as error:
        raise BadInput(
            f"config: {name}._component_={path!r} cannot be imported: {str(error).splitlines()[0]}"
        ) from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    check_names(name, node, set(parameters) | {"_component_"})
