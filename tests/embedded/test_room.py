"""Whether a container engine has room for the full stack is said before anything starts."""

import pytest

from embedded.room import CASES, check_cases, limits, settings


@pytest.mark.parametrize(
    ("cores", "given", "wanted"),
    [
        (16, {}, {"PERENNIAL_CPUS": "4", "PERENNIAL_CPUS_GPU": "8"}),
        (2, {}, {"PERENNIAL_CPUS": "2", "PERENNIAL_CPUS_GPU": "2"}),
        (4, {"PERENNIAL_CPUS": "1.5"}, {"PERENNIAL_CPUS": "1.5", "PERENNIAL_CPUS_GPU": "4"}),
    ],
)
def test_limits_fit_the_engine(cores, given, wanted):
    """What nobody set is the compose file's own limit, or the engine's cores where those are fewer.

    What somebody set stays.
    """
    assert limits(cores, 7.6, given) == wanted


@pytest.mark.parametrize(
    ("cores", "gib", "given", "words"),
    [
        (2, 8.0, {"PERENNIAL_CPUS": "4"}, "PERENNIAL_CPUS=4, but the container engine has 2 cores"),
        (4, 8.0, {"PERENNIAL_CPUS_GPU": "many"}, "PERENNIAL_CPUS_GPU=many"),
        (1, 8.0, {}, "1 core"),
        (4, 3.8, {}, r"3\.8 GiB"),
    ],
)
def test_too_little_room_names_what_to_change(cores, gib, given, words):
    """An engine that is too small, or a limit that it cannot give, is an error.

    It names the figure and what to change.
    """
    with pytest.raises(ValueError, match=words):
        limits(cores, gib, given)


def test_settings_come_from_the_environment_before_the_file(tmp_path):
    """A limit is read where Compose reads it: the environment first, then .env.

    Comments and other names are no limits.
    """
    (tmp_path / ".env").write_text("# PERENNIAL_CPUS=9\nPERENNIAL_CPUS='3'\nPERENNIAL_CPUS_GPU=6\nALERT_ROUTE=screen\n")
    assert settings(tmp_path / ".env", {"PERENNIAL_CPUS_GPU": "5"}) == {
        "PERENNIAL_CPUS": "3",
        "PERENNIAL_CPUS_GPU": "5",
    }
    assert settings(tmp_path / "none", {}) == {}
    (tmp_path / ".env").write_text(f"{CASES}=cases\nPERENNIAL_CPUS=3\n")
    assert settings(tmp_path / ".env", {}, [CASES]) == {CASES: "cases"}


def test_a_folder_of_cases_is_looked_at_before_images_are_built(tmp_path):
    """One folder is taken, also below the checkout; several, or one that is not there, are told with what to do."""
    (tmp_path / "cases").mkdir()
    check_cases("cases", tmp_path)
    check_cases(str(tmp_path / "cases"))
    with pytest.raises(ValueError, match=r"PERENNIAL_CASES names several folders .*: put all cases into one"):
        check_cases(f"{tmp_path}:{tmp_path / 'cases'}")
    with pytest.raises(ValueError, match="PERENNIAL_CASES=lost is no folder: make it"):
        check_cases("lost", tmp_path)
