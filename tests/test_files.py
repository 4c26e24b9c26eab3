"""A file of JSON that is missing or damaged, or lacks what is looked for, is one line that ends with the mend."""

import pytest

from kmura.errors import InputError
from kmura.files import reading_json


def first_of(path, **missing):
    with reading_json(path, mend="make it again", **missing) as found:
        return found["values"][0]


def test_what_the_block_makes_of_a_file_is_given_back(tmp_path):
    (tmp_path / "a.json").write_text('{"values": [3]}')
    assert first_of(tmp_path / "a.json") == 3


@pytest.mark.parametrize("content", ["{", "", "[1]", "{}", '{"values": null}', b"\xff"])
def test_damage_is_named_with_the_file_and_the_mend(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"a\.json is damaged \(\w+: .*\); make it again$"):
        first_of(path)


def test_a_missing_file_says_what_was_asked_for_or_is_damage(tmp_path):
    with pytest.raises(InputError, match="^no run here$"):
        first_of(tmp_path / "a.json", missing="no run here")
    with pytest.raises(InputError, match="a.json is damaged"):
        first_of(tmp_path / "a.json")


def test_the_blocks_own_refusal_passes_unchanged(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="^of another version$"):
        with reading_json(tmp_path / "a.json", mend="make it again"):
            raise InputError("of another version")
