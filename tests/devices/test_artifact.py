"""An artifact that does not verify is refused in one line, whatever is wrong with it."""

import json

import pytest

from devices.artifact import MANIFEST, open_artifact, seal
from devices.errors import UserError
from devices.files import sha256


def manifest_of(folder):
    """The manifest as it stands."""
    return json.loads((folder / MANIFEST).read_text())


def rewrite(folder, change):
    """Apply `change` to the manifest in place, or put what it returns there."""
    manifest = manifest_of(folder)
    changed = change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest if changed is None else changed))


def refusal(folder, **options):
    """The one line with which the folder is refused."""
    with pytest.raises(UserError) as caught:
        open_artifact(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_sealed_folder_opens(decoder_folder):
    """What `seal` wrote verifies, and its identity is the manifest's hash."""
    artifact = open_artifact(decoder_folder)
    assert (artifact.name, artifact.kind, artifact.recipe) == ("tiny-decoder", "decoder", "fp32")
    assert artifact.sha256 == sha256(decoder_folder / MANIFEST)
    assert artifact.file_bytes == sum(
        f.stat().st_size for f in decoder_folder.iterdir() if f.name != MANIFEST
    )


def test_every_file_is_vouched_for(decoder_folder):
    """The manifest lists every file but itself, with the size and hash it has."""
    listed = manifest_of(decoder_folder)["files"]
    assert set(listed) == {f.name for f in decoder_folder.iterdir()} - {MANIFEST}
    for name, entry in listed.items():
        assert entry == {
            "size": (decoder_folder / name).stat().st_size,
            "sha256": sha256(decoder_folder / name),
        }


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json", "tokenizer.json"])
def test_one_changed_byte_is_refused(own_artifact, name):
    """Any byte of any file, changed without changing the size, is found."""
    data = bytearray((own_artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_artifact / name).write_bytes(data)
    assert f"{name} is not the file that was exported" in refusal(own_artifact)


def _drop(key):
    return lambda manifest: manifest.pop(key) and None


def _put(value, *keys):
    def change(manifest):
        at = manifest
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


def _list(name, entry=None):
    return _put({"size": 1, "sha256": "0" * 64} if entry is None else entry, "files", name)


MALFORMED = {
    "no schema": _drop("schema"),
    "schema a text": _put("1", "schema"),
    "schema null": _put(None, "schema"),
    "schema true": _put(True, "schema"),
    "schema 0": _put(0, "schema"),
    "schema a fraction": _put(1.5, "schema"),
    "newer schema": _put(2, "schema"),
    "no kind": _drop("kind"),
    "unknown kind": _put("encoder", "kind"),
    "kind a list": _put(["decoder"], "kind"),
    "kind an object": _put({}, "kind"),
    "unknown cache": _put("static", "cache"),
    "cache a list": _put(["fixed"], "cache"),
    "no name": _drop("name"),
    "name a number": _put(3, "name"),
    "empty name": _put("", "name"),
    "no model": _drop("model"),
    "model a list": _put([], "model"),
    "model null": _put(None, "model"),
    "no positions": _put({"layers": 1}, "model"),
    "positions a text": _put("48", "model", "positions"),
    "positions negative": _put(-1, "model", "positions"),
    "vocab null": _put(None, "model", "vocab"),
    "layers true": _put(True, "model", "layers"),
    "no recipe": _drop("recipe"),
    "recipe a text": _put("fp32", "recipe"),
    "recipe without name": _put({}, "recipe"),
    "lineage a list": _put([], "lineage"),
    "task a text": _put("docs-kind", "task"),
    "parity a number": _put(1.0, "parity"),
    "quality a number": _put(1.0, "quality"),
    "no files": _drop("files"),
    "files a list": _put([], "files"),
    "no graph listed": lambda m: m["files"].pop("model.onnx") and None,
    "entry a text": _list("config.json", "abc"),
    "entry a list": _list("config.json", [1, 2]),
    "entry without size": _list("config.json", {"sha256": "0" * 64}),
    "entry without hash": _list("config.json", {"size": 1}),
    "size a text": _list("config.json", {"size": "1", "sha256": "0" * 64}),
    "size negative": _list("config.json", {"size": -1, "sha256": "0" * 64}),
    "size true": _list("config.json", {"size": True, "sha256": "0" * 64}),
    "hash too short": _list("config.json", {"size": 1, "sha256": "00"}),
    "hash a number": _list("config.json", {"size": 1, "sha256": 7}),
    "missing file": _list("more.onnx"),
    "parent folder": _list("../secret"),
    "absolute path": _list("/etc/passwd"),
    "sub folder": _list("sub/file"),
    "back slash": _list("..\\secret"),
    "empty file name": _list(""),
    "dot": _list("."),
    "two dots": _list(".."),
    "null byte": _list("a\0b"),
    "itself": _list(MANIFEST),
    "manifest a list": lambda m: [m],
    "manifest a text": lambda m: "manifest",
    "manifest null": lambda m: 0,
    "manifest empty": lambda m: {},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_manifests_are_one_line(own_artifact, name):
    """Wrong types, missing keys and names that leave the folder are refused, hashes looked at or not."""
    rewrite(own_artifact, MALFORMED[name])
    refusal(own_artifact)
    refusal(own_artifact, verify=False)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1' + b" " * 99, b"nul"]
)
def test_a_manifest_that_is_no_json_is_one_line(own_artifact, text):
    """Any bytes in the manifest's place are answered in one line."""
    (own_artifact / MANIFEST).write_bytes(text)
    refusal(own_artifact)


def test_a_newer_schema_says_so(own_artifact):
    """An artifact of a newer toolchain is told from a damaged one."""
    rewrite(own_artifact, _put(2, "schema"))
    assert "written by a newer toolchain (schema 2" in refusal(own_artifact)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json", "tokenizer.json"])
def test_a_missing_file_is_refused(own_artifact, name):
    """A file that the manifest lists must be there."""
    (own_artifact / name).unlink()
    assert f"{name} is missing" in refusal(own_artifact, verify=False)


def test_a_shorter_file_is_refused_by_its_size(own_artifact):
    """A truncated copy is found even where hashes are not looked at."""
    data = (own_artifact / "model.onnx.data").read_bytes()
    (own_artifact / "model.onnx.data").write_bytes(data[:-1])
    assert f"has {len(data) - 1} bytes where the manifest says {len(data)}" in refusal(
        own_artifact, verify=False
    )


@pytest.mark.parametrize("name", ["model.onnx.data", "config.json", MANIFEST])
def test_links_are_refused(own_artifact, tmp_path, name):
    """A link in the place of a file is refused, even to the very same bytes."""
    (own_artifact / name).rename(tmp_path / "elsewhere")
    (own_artifact / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} is a link" in refusal(own_artifact)


def test_a_dangling_link_is_refused(own_artifact):
    """A link to nothing is no missing file."""
    (own_artifact / "model.onnx.data").unlink()
    (own_artifact / "model.onnx.data").symlink_to("nowhere")
    assert "is a link" in refusal(own_artifact)


def test_an_unlisted_link_is_refused(own_artifact, tmp_path):
    """A link that the manifest does not list could lead the graph out of the folder."""
    (own_artifact / "sub").symlink_to(tmp_path)
    assert "sub is a link" in refusal(own_artifact)


def test_a_folder_in_a_files_place_is_refused(own_artifact):
    """A folder called model.onnx.data is no file."""
    (own_artifact / "model.onnx.data").unlink()
    (own_artifact / "model.onnx.data").mkdir()
    assert "no plain file" in refusal(own_artifact)


def test_weights_the_manifest_does_not_list_are_refused(own_artifact):
    """A data file that the graph names must be vouched for; a note that it does not name may stay."""
    rewrite(own_artifact, lambda m: m["files"].pop("model.onnx.data") and None)
    assert "the graph may use model.onnx.data" in refusal(own_artifact)


def test_a_note_beside_the_files_is_left_alone(own_artifact):
    """A user's own file does not make an artifact unreadable."""
    (own_artifact / "NOTES about this.md").write_text("mine")
    assert open_artifact(own_artifact).path == own_artifact


@pytest.mark.parametrize("where", ["nothing", "file", "empty"])
def test_what_is_no_artifact_is_told_so(tmp_path, where):
    """No folder, a file and a folder without manifest are each answered in one line."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / where)


def test_a_link_is_never_sealed(own_artifact, tmp_path):
    """An artifact with a link in it cannot come into being."""
    (own_artifact / "extra").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds only plain files"):
        seal(own_artifact, {})
