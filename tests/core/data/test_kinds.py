import pytest

from clipgen_core.data.decode import decode
from clipgen_core.data.kinds import looks_like_image
from clipgen_core.data.rejected import Rejected
from tests.core.data.test_decode import encoded, solid


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\n\0\0\0", "PAM: convert it"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "PFM in colour: convert it"),
        (b"BA" + bytes(12) + b"BM" + bytes(80), "OS/2 bitmap array: convert it"),
        (encoded(solid("RGB", "red"), "TGA"), "TGA: convert it"),
        (encoded(solid("RGB", "red", (16, 16)), "ICO"), "ICO: convert it"),
        (b"\0\0\0\x18ftypmif3" + bytes(200), r"HEIC: pip install 'clipgen\[heif\]'"),
    ],
    ids=["PAM", "PFM", "BA", "TGA", "ICO", "mif3"],
)
def test_kinds_that_are_not_read_are_named(data: bytes, said: str) -> None:
    assert looks_like_image("no-extension", data)
    with pytest.raises(Rejected, match=f"unsupported: {said}"):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PCX", "RGB"), ("SGI", "RGB"), ("EPS", "RGB"), ("IM", "RGB"), ("QOI", "RGB"), ("ICNS", "RGB")),
        *(("DDS", "RGB"), ("BLP", "P"), ("XBM", "1"), ("MSP", "1"), ("PCX", "1"), ("SGI", "L")),
    ],
)
def test_kinds_that_pillow_would_read_and_that_are_not_taken(kind: str, mode: str) -> None:
    data = encoded(solid("RGB", "red", (16, 16)).convert(mode), kind)
    assert looks_like_image("no-extension", data)
    with pytest.raises(Rejected, match=f"unsupported: {kind}: convert it"):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"\n\5\0\1" + b"protobuf" * 20, b"%!PS-Adobe-3.0\n%%Pages: 3", b"#define WIDTH 3\n", b"FORM A"]
)
def test_files_that_begin_almost_as_an_image_does(data: bytes) -> None:
    assert not looks_like_image("no-extension", data)
