"""The errors of a Hugging Face hub's client as the store's own: what to mend, or to try again."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import errors as hub

from spec.errors import BadInput, PassingFault

_PASSING_STATUS = {408, 409, 412, 425, 429}  # 412: another commit came in between
_FAULTS = (
    httpx.TransportError,
    hub.LocalEntryNotFoundError,
    hub.FileMetadataError,
    *(ConnectionError, TimeoutError, RuntimeError),  # uploads of large files
)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn the hub client's errors into the store's own; `where` is what was asked for."""
    try:
        yield
    except hub.OfflineModeIsEnabled as error:
        raise BadInput(f"{where}: HF_HUB_OFFLINE is set; unset it for this step") from error
    except hub.LocalTokenNotFoundError as error:
        raise BadInput(f"{where}: no hub token; set HF_TOKEN or run `hf auth login`") from error
    except hub.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(where) from error
    except hub.RevisionNotFoundError as error:
        raise BadInput(f"{where}: no such version there") from error
    except hub.HfHubHTTPError as error:
        raise _answered(where, error) from error
    except _FAULTS as error:
        if isinstance(error.__cause__, hub.HfHubHTTPError):  # an upload's, wrapped in a RuntimeError
            raise _answered(where, error.__cause__) from error
        raise PassingFault(f"{where}: the hub cannot be reached: {_line(error)}") from error
    except (hub.HFValidationError, ValueError) as error:
        raise BadInput(f"{where}: {_line(error)}") from error


def _answered(where: str, error: hub.HfHubHTTPError) -> BadInput | PassingFault:
    status = error.response.status_code if error.response is not None else 500
    if status >= 500 or status in _PASSING_STATUS:
        return PassingFault(f"{where}: the hub answers {status}: {_line(error)}")
    advice = "; set HF_TOKEN to a token that may" if status in (401, 403) else ""
    return BadInput(f"{where}: the hub answers {status}: {_line(error)}{advice}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
