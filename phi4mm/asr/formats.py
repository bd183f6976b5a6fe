"""The files that are read, for the manual; tests/inputs/test_formats.py reads one of each."""

from __future__ import annotations

# What a file is, and what its sound may be encoded with.
FORMATS: dict[str, tuple[str, ...]] = {
    "WAV (.wav)": (
        "PCM",
        "float",
        "µ-law",
        "A-law",
        "IMA ADPCM",
        "MS ADPCM",
        "G.722",
        "G.726",
        "G.721",
        "PCM in RIFX",
        "GSM 6.10",
        "MP3",
    ),
    "RF64, Wave64 (.rf64, .w64)": ("PCM in RF64", "PCM in Wave64"),
    "AIFF (.aiff, .aif, .aifc)": ("PCM", "µ-law"),
    "AU (.au, .snd)": ("PCM", "µ-law", "G.721", "G.722"),
    "CAF (.caf)": ("PCM", "ALAC"),
    "FLAC (.flac)": ("FLAC",),
    "Ogg (.ogg, .oga, .opus, .spx), also chained": ("Vorbis", "Opus", "FLAC", "Speex"),
    "MPEG audio (.mp3, .mp2)": ("MP3", "MP2"),
    "MP4 (.m4a, .mp4, .mov, .3gp)": ("AAC", "ALAC", "MP3", "Opus", "AMR-NB", "PCM in MOV"),
    "Matroska (.mkv, .mka, .webm)": ("AAC", "AC-3", "MP3", "Opus", "PCM", "Opus in WebM"),
    "ASF (.wma, .wmv)": ("WMA 1", "WMA 2"),
    "AMR (.amr)": ("AMR-NB",),
    "AAC (.aac)": ("AAC in ADTS",),
    "Dolby (.ac3)": ("AC-3", "E-AC-3"),
    "WavPack, True Audio (.wv, .tta)": ("WavPack", "True Audio"),
    "MPEG streams (.ts, .m2ts, .mpg, .vob)": ("AAC", "AC-3", "MP2 in a programme stream"),
    "AVI, Flash Video (.avi, .flv)": ("MP3 in AVI", "PCM in AVI", "AAC in FLV", "MP3 in FLV"),
    "RealMedia (.rm)": ("RealAudio 14.4",),
    "NIST SPHERE, VOC, IRCAM (.sph, .voc, .sf)": ("PCM in SPHERE", "PCM in VOC", "PCM in IRCAM"),
}


def table() -> str:
    """The manual's section, in Markdown."""
    rows = "\n".join(f"| {file} | {', '.join(codecs)} |" for file, codecs in FORMATS.items())
    return f"""\
## Files that are read

| file | sound |
|---|---|
{rows}

A test reads one file of each: from a path, from bytes, from an open file, and from a pipe, as standard input is.
Other media formats of FFmpeg are read too. Playlists (m3u8, ffconcat, sdp ...) are refused, as they would
open other files. The format is recognised by the contents, not by the name; so samples without a header (.g722) cannot
be read.

Times are those of the file. A sound track that begins after the picture, an edit list, or a gap in the time stamps
counts as silence. If there are several sound tracks, the first that is marked as default is read, or `--track`. A file
that ends before its headers say so is refused as truncated. Formats that may be cut anywhere (MP3 without a Xing
header, AAC, AMR, AC-3, MPEG streams) do not show that they are truncated. An input/output error while reading raises
`AudioReadError`.
"""
