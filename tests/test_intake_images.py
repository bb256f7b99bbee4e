from __future__ import annotations

import base64
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.images import FolderFiles
from promptspool.intake.parts import MAX_IMAGE_BYTES, MAX_IMAGES, MAX_INLINED_BYTES, media_type
from promptspool.intake.render import Renderer
from promptspool.settings import ProfileSettings

if TYPE_CHECKING:
    from promptspool.intake.rows import Files

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
GIF = b"GIF89a\x01\x00\x01\x00"
WEBP = b"RIFF\x1a\x00\x00\x00WEBPVP8 "

URL = "https://example.com/a%20b.png?x=1#y"


def profile(**changes: object) -> ProfileSettings:
    """Return a profile that differs from the plainest in *changes*."""
    return ProfileSettings.model_validate({"model": "gpt-5-mini", **changes})


def columns_of(row: dict[str, Any]) -> dict[str, bytes]:
    """Return a row's columns."""
    return {name: msgspec.json.encode(value) for name, value in row.items()}


def body_of(row: dict[str, Any], files: Files | None = None, **changes: object) -> dict[str, Any]:
    """Return the body of the request that a row becomes."""
    wire = Renderer(profile(**changes), files=files).request(columns_of(row)).line("job-0")
    body: dict[str, Any] = json.loads(wire)["body"]
    return body


def urls_of(row: dict[str, Any], files: Files | None = None, **changes: object) -> list[str]:
    """Return the URLs of the images of the chat that a row becomes."""
    parts = body_of(row, files, **changes)["messages"][-1]["content"][1:]
    return [part["image_url"]["url"] for part in parts]


def fault(row: dict[str, Any], files: Files | None = None) -> tuple[str, str | None, str]:
    """Return the code, the key and the message that a person gets for a row."""
    with pytest.raises(BadInput) as caught:
        body_of({"prompt": "What is it?", **row}, files)

    return caught.value.code, caught.value.key, caught.value.reason


def data_url(kind: str, content: bytes) -> str:
    """Return a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_an_image_is_a_part_after_the_prompt() -> None:
    """Both endpoints of messages get the prompt and the image as parts of one message."""
    row = {"prompt": "What is it?", "image": URL}

    assert body_of(row, system="Be brief.")["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": URL}},
            ],
        },
    ]
    assert body_of(row, endpoint=RESPONSES, system="Be brief.") == {
        "model": "gpt-5-mini",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "detail": "auto", "image_url": URL},
                ],
            }
        ],
        "instructions": "Be brief.",
    }


def test_several_images_keep_their_order() -> None:
    """Lists, lists in text cells and several columns give their images in the profile's order."""
    row = {
        "photo": ["https://a.b/3", " https://a.b/4 "],
        "Image": "https://a.b/1",
        "image_url": '["https://a.b/2"]',
        "text": "hi",
    }
    expected = [f"https://a.b/{n}" for n in (1, 2, 3, 4)]

    assert urls_of(row, images=["image", "image_url", "photo"]) == expected
    # Of those that no profile names, nothing is known.
    assert urls_of(row, prompt="{{ text }}") == expected[:2]


@pytest.mark.parametrize("nothing", [None, "", "  ", []])
def test_a_row_without_an_image_is_plain(nothing: object) -> None:
    """A column of images that is empty in a row leaves the row's prompt what it was."""
    body = body_of({"prompt": "hi", "image": nothing})

    assert body["messages"] == [{"role": "user", "content": "hi"}]


def test_only_plain_rows_of_two_endpoints_have_images() -> None:
    """Where there is no place for images a column is a column; beside messages it is a fault."""
    row = {"prompt": "hi", "image": "no such file"}
    assert body_of(row, endpoint="/v1/embeddings") == {"model": "gpt-5-mini", "input": "hi"}

    messages = [{"role": "user", "content": "hi"}]
    assert body_of({"messages": messages, "image": ""})["messages"] == messages

    with pytest.raises(BadInput, match="has both 'messages' and 'image'"):
        body_of({"messages": messages, "image": "no such file"})

    # There, a column called image may even be the prompt.
    assert body_of({"image": "a cat"}, endpoint="/v1/moderations")["input"] == "a cat"


@pytest.mark.parametrize(
    ("content", "kind"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (WEBP, "image/webp")],
)
def test_a_file_is_inlined_as_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    """A file of the profile's folder becomes a data URL; its content tells its kind."""
    (tmp_path / "in folders").mkdir()
    (tmp_path / "in folders" / "ä.jpg").write_bytes(content)

    for name in ("in folders/ä.jpg", "./in folders//ä.jpg"):
        urls = urls_of({"prompt": "hi", "image": name}, FolderFiles(tmp_path))
        assert urls == [data_url(kind, content)]


def test_a_data_url_is_kept() -> None:
    """An image that is in the row already is passed on as it is."""
    url = data_url("image/png", PNG)

    assert urls_of({"prompt": "hi", "image": url}) == [url]


@pytest.mark.parametrize(
    ("value", "key", "message"),
    [
        (
            5,
            "image",
            "image is the number 5; write a URL, the name of a file, or an array of those",
        ),
        (
            [URL, None],
            "image[1]",
            "image[1] is null; write a URL, the name of a file, or an array of those",
        ),
        (
            [""],
            "image[0]",
            "image[0] is empty; write a URL or the name of a file, or leave it out",
        ),
        (
            "https:///a.png",
            "image",
            "image is the broken URL 'https:///a.png'; write it out in full",
        ),
        (
            "http://a.b/a b.png",
            "image",
            "image is the broken URL 'http://a.b/a b.png'; write it out in full",
        ),
        (
            "data:text/plain;base64,aGk=",
            "image",
            (
                "image is the URL 'data:text/plain;base64,aGk=', which holds no image; write "
                "data:image/png;base64, and the image in base64"
            ),
        ),
        *(
            (
                f"{scheme}:///etc/passwd",
                "image",
                (
                    f"image is a URL of the kind '{scheme}:'; write one of https: or data:, or "
                    "the name of a file"
                ),
            )
            for scheme in ("file", "ftp", "gopher")
        ),
    ],
)
def test_an_image_that_is_none_says_what_to_write(value: object, key: str, message: str) -> None:
    """What is no URL that can be passed on, and no file's name, is a fault of the row."""
    assert fault({"image": value}) == ("invalid_image", key, message)


def test_a_file_name_without_files_says_where_they_could_be() -> None:
    """A name that nothing came with names both ways to give images."""
    assert fault({"image": "a.png"}) == (
        "no_files",
        "image",
        (
            "image is the file name 'a.png', and no files came with it; drop prompts and images "
            'together in a .zip, or write files = "FOLDER" in the profile'
        ),
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"BM\x00\x00", "a BMP"),
        (b'<?xml version="1.0"?><svg/>', "XML"),
        (b"\n<!doctype html>", "HTML"),
        (b"\x00\x00\x00\x18ftypheic", "a HEIC, AVIF or video"),
        (b"root:x:0:0", "text"),
        (b"\x01\x02\x03\xff\xfe", "no image (it begins with 0x010203ff)"),
    ],
)
def test_a_file_that_is_no_image_says_what_it_is(
    tmp_path: Path, content: bytes, found: str
) -> None:
    """Only images leave the folder, whatever their names end in."""
    (tmp_path / "a.png").write_bytes(content)

    assert fault({"image": "a.png"}, FolderFiles(tmp_path)) == (
        "invalid_image",
        "image",
        f"image is the file 'a.png', which is {found}; name a PNG, JPEG, GIF or WebP",
    )


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder of files beside one that is not to be read, with all ways out of it."""
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a.png").write_bytes(PNG)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inner.png").write_bytes(PNG)
    (folder / "near.png").symlink_to("inner.png")
    (folder / "linked").symlink_to(tmp_path / "secrets", target_is_directory=True)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))

    return folder


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../secret.png", "only names of files below the profile's folder are read"),
        ("folder.png/../inner.png", "only names of files below the profile's folder are read"),
        ("/etc/passwd", "only names of files below the profile's folder are read"),
        ("a\0.png", "only names of files below the profile's folder are read"),
        ("./", "only names of files below the profile's folder are read"),
        ("link.png", "it is a link"),
        ("near.png", "it is a link"),
        ("linked/a.png", "a part of its path is no folder, or is a link"),
        ("inner.png/a", "a part of its path is no folder, or is a link"),
        ("folder.png", "it is no regular file"),
        ("fifo.png", "it is no regular file"),
        ("socket.png", "it is no regular file"),
        ("none.png", "there is no such file"),
        ("x" * 300, "there is no such file, the name is too long"),
        ("x/" * 3000 + "a.png", "there is no such file"),
    ],
)
def test_nothing_but_the_folders_files_is_read(hostile: Path, name: str, why: str) -> None:
    """No row of a dropped file makes the daemon read, or wait for, anything else."""
    shown = repr(name if len(name) <= 80 else name[:80] + "…")

    assert fault({"image": name}, FolderFiles(hostile)) == (
        "unreadable_file",
        "image",
        f"image: the file {shown} cannot be taken: {why}",
    )


def test_no_descriptor_is_left_open(hostile: Path) -> None:
    """However a read ends, what it opened is closed."""
    files = FolderFiles(hostile)
    before = len(list(Path("/proc/self/fd").iterdir()))

    for name in ("inner.png", "link.png", "linked/a.png", "fifo.png", "folder.png/b/c", "none"):
        try:
            files.read(name, max_bytes=10)
        except BadInput:
            continue

    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.lists(st.sampled_from(["..", ".", "", "linked", "files", "secrets", "a.png", "x"])))
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """However a name is put together, it leads to a file below the folder or to a fault."""
    base = tmp_path_factory.mktemp("base")
    (base / "secrets").mkdir()
    (base / "secrets" / "a.png").write_bytes(b"secret")
    (base / "files" / "x").mkdir(parents=True)
    (base / "files" / "linked").symlink_to(base / "secrets")
    (base / "files" / "x" / "a.png").write_bytes(b"public")

    try:
        content = FolderFiles(base / "files").read("/".join(parts), max_bytes=10)
    except BadInput:
        return

    assert content == b"public"


def test_a_folder_that_is_a_link_may_be_named(tmp_path: Path) -> None:
    """The folder is the configuration's choice; one that cannot be opened is the profile's."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.gif").write_bytes(GIF)
    (tmp_path / "named").symlink_to("real")
    assert FolderFiles(tmp_path / "named").read("a.gif", max_bytes=99) == GIF

    with pytest.raises(
        BadInput, match=r"none' cannot be opened: No such file or directory; "
    ) as caught:
        FolderFiles(tmp_path / "none")

    assert caught.value.code == "bad_profile"


def test_an_image_has_a_largest_size(tmp_path: Path) -> None:
    """One image of a request, and all of them together, have as much as providers take."""
    files = FolderFiles(tmp_path)

    with (tmp_path / "fits.png").open("wb") as file:
        file.write(PNG)
        file.truncate(MAX_IMAGE_BYTES)

    with (tmp_path / "large.png").open("wb") as file:
        file.write(PNG)
        file.truncate(MAX_IMAGE_BYTES + 1)

    assert len(urls_of({"prompt": "hi", "image": "fits.png"}, files)[0]) > MAX_IMAGE_BYTES
    assert fault({"image": "large.png"}, files)[2] == (
        "image: the file 'large.png' cannot be taken: it has 20,000,001 bytes, and only "
        "20,000,000 may be inlined"
    )

    several = ["fits.png"] * (MAX_INLINED_BYTES // MAX_IMAGE_BYTES + 1)
    assert fault({"image": several}, files)[:2] == ("unreadable_file", f"image[{len(several) - 1}]")


def test_a_request_has_so_many_images() -> None:
    """More images than a request may have are a fault of the row."""
    assert len(urls_of({"prompt": "hi", "image": [URL] * MAX_IMAGES})) == MAX_IMAGES
    assert fault({"image": [URL] * (MAX_IMAGES + 1)}) == (
        "too_many_images",
        f"image[{MAX_IMAGES}]",
        "the row has more than 1,500 images; spread them over several rows",
    )


@given(
    st.sampled_from(
        [
            (b"\x89PNG\r\n\x1a\n", "image/png"),
            (b"\xff\xd8\xff", "image/jpeg"),
            (b"GIF87a", "image/gif"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\x01\x02\x03\x04WEBP", "image/webp"),
        ]
    ),
    st.binary(max_size=20),
)
def test_the_first_bytes_tell_an_image(kind: tuple[bytes, str], rest: bytes) -> None:
    """An image is told by how it begins, all of it, and by nothing else."""
    magic, name = kind

    assert media_type(magic + rest) == name
    assert media_type(magic[:-1]) is None
    assert media_type(b"x" + magic + rest) is None
