"""How long a media file is by its own headers: that FFmpeg reads it to its end does not mean that it was whole.

Nothing is decoded here. Layouts: RIFF, RF64 and AVI (EBU Tech 3306, OpenDML), Wave64, AIFF, AU, CAF, ISO base media
(ISO/IEC 14496-12), Matroska (RFC 9559), ASF, RealMedia, VOC, Flash Video, Ogg (RFC 3533), MP3 with a Xing header.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from phi4mm.errors import AudioError

STREAMED_SIZE = 0x7FFF0000  # a size of 32 bits from here up is what a program writing into a pipe puts for "unknown"
UNKNOWN_SIZE = 0xFFFFFFFF
LONGEST = 1 << 62  # likewise for one of 64 bits
LARGEST_FILE = 1 << 40  # bytes; a seek far beyond is an error on some file systems
SIZE_SLACK = 64  # bytes by which the size of samples may be too large: some programs count the header
MP3_SLACK = 256  # likewise in a Xing header: some count a tag that was taken away since
MOST_CHUNKS = 1000  # before the one with the samples

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_SAMPLES_OF_MP4 = {b"mdat", b"moof", b"moov"}
_BOXES = _SAMPLES_OF_MP4 | {
    *(b"ftyp", b"styp", b"free", b"skip", b"wide", b"pnot", b"sidx", b"ssix", b"mfra", b"meta", b"uuid", b"emsg"),
    *(b"prft", b"pdin", b"udta"),
}
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_ELEMENTS = {
    *(_SEGMENT, _CLUSTER, 0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1941A469),
    *(0x1043A770, 0xEC, 0xBF),  # void, checksum
    *(0xE7, 0xA3, 0xA0, 0xAB, 0xA7),  # in a cluster
}
_OGG_HEADER = 27  # bytes of a page before its table of segments


def check_size(file: BinaryIO, name: str) -> None:
    """Compares the size that a file's headers promise with what is there; the file is left at its start.

    Raises:
        AudioError: the file is truncated.
    """
    size = file.seek(0, io.SEEK_END)
    head = _at(file, 0, 16)
    for matches, promised_size, slack in _LAYOUTS:
        if matches(head):
            promised = promised_size(file, size)
            file.seek(0)
            if promised is not None and promised > size + slack:
                raise truncated(name, f"a file of {promised} bytes or more", f"{size}")
    file.seek(0)


def known_sizes(file: BinaryIO) -> dict[int, bytes]:
    """What is to be written into a header, by place, whose sizes are unknown and which FFmpeg would take for true.

    The file is left at its start.
    """
    size = file.seek(0, io.SEEK_END)
    head = _at(file, 0, 16)
    known: dict[int, bytes] = {}
    if head[:4] == b".snd" and head[8:12] == bytes(4):
        known[8] = UNKNOWN_SIZE.to_bytes(4, "big")  # which it knows
    elif head == _W64_RIFF:
        known = _known_w64(file, size)
    elif head[:4] in (b"RF64", b"BW64"):
        chunks = {kind: (start, length) for start, kind, length in _chunks(file, size, 12, "little")}
        if b"ds64" in chunks and b"data" in chunks and chunks[b"data"][1] >= STREAMED_SIZE:
            place = chunks[b"ds64"][0] + 8
            wide = int.from_bytes(_at(file, place, 8), "little")
            if not 0 < wide < LONGEST or wide == UNKNOWN_SIZE:
                known[place] = (size - chunks[b"data"][0]).to_bytes(8, "little")
    elif head[:4] == b"FORM":
        chunks = {kind: (start, length) for start, kind, length in _chunks(file, size, 12, "big")}
        start, length = chunks.get(b"SSND", (0, 1))
        if b"COMM" in chunks and start and (not length or length >= STREAMED_SIZE) and size < STREAMED_SIZE:
            known = {4: (size - 8).to_bytes(4, "big"), start - 4: (size - start).to_bytes(4, "big")}
            known[chunks[b"COMM"][0] + 2] = bytes(4)  # of frames
    file.seek(0)
    return known


def _known_w64(file: BinaryIO, size: int) -> dict[int, bytes]:
    place = 40
    for _ in range(MOST_CHUNKS):
        chunk = _at(file, place, 24)
        length = int.from_bytes(chunk[16:], "little")
        if len(chunk) < 24:
            break
        if chunk[:4] == b"data":
            sizes = {16: size, place + 16: size - place}
            whole = 24 < length < LONGEST
            return {} if whole else {at: value.to_bytes(8, "little") for at, value in sizes.items()}
        place += max(length + 7, 8) // 8 * 8
    return {}


def check_piped_size(start: bytes, size: int, name: str) -> None:
    """As ``check_size``, of what came through a pipe, where its size is in its first bytes: wav, and mp3 with a Xing
    header.

    Raises:
        AudioError: it is truncated.
    """
    for matches, promised_size, slack in _LAYOUTS:
        if matches(start[:16]) and promised_size in (_riff, _mp3):
            promised = promised_size(io.BytesIO(start), size)
            if promised is not None and promised > size + slack:
                raise truncated(name, f"{promised} bytes or more", f"{size}")


def truncated(name: str, promised: str, there: str) -> AudioError:
    return AudioError(
        f"{name}: is truncated: its header promises {promised}, {there} are there; copy or download it again"
    )


def ogg_links(file: BinaryIO) -> list[tuple[int, int]]:
    """Where each link of a chained Ogg file begins and ends, in bytes; a file that is not chained has one.

    The file is left at its start.
    """
    size = file.seek(0, io.SEEK_END)
    starts, began = [0], True
    if _at(file, 0, 4) != b"OggS":
        file.seek(0)
        return [(0, size)]
    for start, _, flags, _ in _ogg_pages(file, size):
        begins = bool(flags & 2)
        if begins and not began:
            starts.append(start)
        began = begins
    file.seek(0)
    return list(zip(starts, [*starts[1:], size], strict=True))


def _ogg_pages(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int, bool]]:
    """Start and end of each page, its flags, and whether its last packet goes on; what is between pages is skipped."""
    place = 0
    while place < size:
        header = _at(file, place, _OGG_HEADER + 255)
        if header[:5] != b"OggS\0":
            if not b"OggS".startswith(header[:4]):
                place = _next_ogg_page(file, place + 1, size)
                continue
            yield place, place + _OGG_HEADER, 0, False  # its header is cut
            return
        table = header[_OGG_HEADER : _OGG_HEADER + header[26]] if len(header) > _OGG_HEADER else b""
        end = place + _OGG_HEADER + (len(table) and header[26]) + sum(table)
        yield place, end, header[5] if len(header) > 5 else 0, table.endswith(b"\xff")
        place = end


def _next_ogg_page(file: BinaryIO, place: int, size: int) -> int:
    while place < size:
        content = _at(file, place, 1 << 16)
        found = content.find(b"OggS\0")
        if found >= 0:
            return place + found
        place += max(len(content) - 4, 1)
    return size


def _ogg(file: BinaryIO, size: int) -> int | None:
    [(_, end, flags, goes_on)] = deque(_ogg_pages(file, size), maxlen=1)  # the last
    return end + 1 if goes_on and not flags & 4 else end


def _riff(file: BinaryIO, size: int) -> int | None:
    head = _at(file, 0, 12)
    order: Literal["little", "big"] = "big" if head[:4] == b"RIFX" else "little"
    if head[8:] == b"AVI ":
        return _avi(file, size)
    wide = 0  # the size of 64 bits
    for start, kind, length in _chunks(file, size, 12, order):
        if kind == b"ds64":  # second in its chunk
            wide = int.from_bytes(_at(file, start + 8, 8), "little")
        if kind == b"data":
            if head[:4] in (b"RF64", b"BW64") and length >= STREAMED_SIZE:
                return start + wide if wide < LONGEST and wide != UNKNOWN_SIZE else None
            return start + length if length < STREAMED_SIZE else None
    return None


def _avi(file: BinaryIO, size: int) -> int | None:
    place = 0
    for start, kind, length in _chunks(file, size, 0, "little"):
        if kind != b"RIFF" or not length or length >= STREAMED_SIZE:
            return None
        place = start + length
    return place


def _aiff(file: BinaryIO, size: int) -> int | None:
    for start, kind, length in _chunks(file, size, 12, "big"):
        if kind in (b"SSND", b"BODY"):
            return start + length if length < STREAMED_SIZE else None
    return None


def _au(file: BinaryIO, size: int) -> int | None:
    head = _at(file, 4, 8)
    start, length = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
    return start + length if length < STREAMED_SIZE else None


def _w64(file: BinaryIO, size: int) -> int | None:
    place = 40
    for _ in range(MOST_CHUNKS):
        head = _at(file, place, 24)
        length = int.from_bytes(head[16:], "little")
        if len(head) < 24 or length < 24 or length >= LONGEST:
            return None
        if head[:4] == b"data":
            return place + length
        place += (length + 7) // 8 * 8
    return None


def _caf(file: BinaryIO, size: int) -> int | None:
    place = 8
    for _ in range(MOST_CHUNKS):
        head = _at(file, place, 12)
        length = int.from_bytes(head[4:], "big")
        if len(head) < 12 or length >= LONGEST:  # -1: up to the end of the file
            return None
        place += 12 + length
        if head[:4] == b"data":
            return place
    return None


def _asf(file: BinaryIO, size: int) -> int | None:
    place = int.from_bytes(_at(file, 16, 8), "little")
    if place >= size:
        return place if place < LONGEST else None
    head = _at(file, place, 24)
    length = int.from_bytes(head[16:], "little")
    return place + length if head[:16] == _ASF_DATA and length < LONGEST else None


def _rm(file: BinaryIO, size: int) -> int | None:
    place = 0
    for _ in range(MOST_CHUNKS):
        head = _at(file, place, 8)
        length = int.from_bytes(head[4:], "big")
        if len(head) < 8 or length < 10 or length >= STREAMED_SIZE:
            return None
        place += length
        if head[:4] == b"DATA":
            return place
    return None


def _voc(file: BinaryIO, size: int) -> int | None:
    place = int.from_bytes(_at(file, 20, 2), "little")
    while place < size:
        head = _at(file, place, 4)
        if not head[0]:
            return place + 1
        place += 4 + int.from_bytes(head[1:], "little")
    return place


def _flv(file: BinaryIO, size: int) -> int | None:
    place = int.from_bytes(_at(file, 5, 4), "big") + 4
    while place < size:
        head = _at(file, place, 11)
        if head[0] not in (8, 9, 18) or any(head[8:]):  # sound, picture, text; others: what was put after it
            return None
        place += 11 + int.from_bytes(head[1:4], "big") + 4
    return place


def _mp3(file: BinaryIO, size: int) -> int | None:
    place = 0
    while (head := _at(file, place, 10))[:3] == b"ID3" and len(head) == 10:
        place += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        place += 10 if head[5] & 0x10 else 0  # a footer
    frame = _at(file, place, 64)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    mpeg1, mono = frame[1] & 0x18 == 0x18, frame[3] & 0xC0 == 0xC0
    info = frame[4 + {(True, False): 32, (False, True): 9}.get((mpeg1, mono), 17) :]
    if info[:4] not in (b"Xing", b"Info") or not info[7] & 2:
        return None
    start = 12 if info[7] & 1 else 8
    length = int.from_bytes(info[start : start + 4], "big")
    return place + length if length < STREAMED_SIZE else None


def _mp4(file: BinaryIO, size: int) -> int | None:
    place = 0
    while place < size:
        head = _at(file, place, 16)
        length, kind, least = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, least = int.from_bytes(head[8:], "big"), 16
        if kind not in _BOXES or length < least:  # 0: up to the end of the file; others: what was put after it
            return None
        place += length
        if place > size:
            return place if kind in _SAMPLES_OF_MP4 else None
    return place


def _matroska(file: BinaryIO, size: int) -> int | None:
    place = 0
    while place < size:
        head = _at(file, place, 12)
        id_length = 9 - head[0].bit_length()
        if id_length > 4:  # what was put after it
            return None
        length_length = 9 - head[id_length].bit_length() if len(head) > id_length else 8
        start = place + id_length + length_length
        if start > size:
            return start
        if int.from_bytes(head[:id_length], "big") not in _ELEMENTS or length_length > 8:
            return None
        mask = (1 << 7 * length_length) - 1
        length = int.from_bytes(head[id_length : id_length + length_length], "big") & mask
        place = start if length == mask else start + length  # of unknown length: its children follow
    return place


def _chunks(file: BinaryIO, size: int, place: int, order: Literal["little", "big"]) -> Iterator[tuple[int, bytes, int]]:
    """Start of each chunk's content, its kind and its length; of an odd one a byte of padding follows."""
    for _ in range(MOST_CHUNKS):
        head = _at(file, place, 8)
        if len(head) < 8 or place >= size:
            return
        length = int.from_bytes(head[4:], order)
        yield place + 8, head[:4], length
        place += 8 + length + length % 2


def _at(file: BinaryIO, place: int, length: int) -> bytes:
    if place > LARGEST_FILE:  # of a header that is wrong
        return b""
    file.seek(place)
    return file.read(length)


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


# How a file of each layout begins, its size by its headers (``None``: unknown), and by how much that may be too large.
_LAYOUTS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], int | None], int], ...] = (
    (_starts(b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff, SIZE_SLACK),
    (_starts(b"FORM"), _aiff, SIZE_SLACK),
    (_starts(b".snd"), _au, SIZE_SLACK),
    (_starts(_W64_RIFF), _w64, SIZE_SLACK),
    (_starts(b"caff"), _caf, SIZE_SLACK),
    (_starts(b"OggS"), _ogg, 0),
    (_starts(b"\x1a\x45\xdf\xa3"), _matroska, 0),
    (_starts(_ASF_HEADER), _asf, 0),
    (_starts(b".RMF"), _rm, SIZE_SLACK),
    (_starts(b"Creative Voice F"), _voc, SIZE_SLACK),
    (_starts(b"FLV\1"), _flv, 4),
    (lambda head: head[4:8] in _BOXES, _mp4, SIZE_SLACK),
    (lambda head: head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"), _mp3, MP3_SLACK),
)
