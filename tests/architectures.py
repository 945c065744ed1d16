"""The true sizes of the targets that have a config here, from the file beside each."""

from transformers import PretrainedConfig

from spec.settings import DEFAULTS
from spec.target.families import read_config, text_config_of

# config below spec/configs -> the target's text model
TARGETS: dict[str, PretrainedConfig] = {
    f"{path.parent.name}/{path.stem}_eagle": text_config_of(read_config(path))
    for path in sorted(DEFAULTS.parent.glob("*/*.json"))
    if path.parent.name != "smollm2"
}
