"""Media types: which extensions are accepted, as what such a file is served, and under which policy.

Knows names, and never looks into a file: what its bytes are, rag/corpus/formats.py finds out. Who may have one is not
decided here.
"""

from collections.abc import Mapping
from typing import Final

# What an accepted extension is, whatever the sender called it. Pages and scripts are plain text here: what someone
# uploads is never run in this server's name. tests/test_formats.py holds the list to the one that documents are read by.
_EXTENSIONS_OF: Final[Mapping[str, str]] = {
    "text/plain": (
        ".txt .rst .org .html .htm .xhtml .csv .tsv .json .jsonl .ndjson .ipynb .eml .py .pyi .js .mjs .cjs .ts"
        " .tsx .jsx .vue .java .c .h .cc .cpp .cxx .hpp .rs .go .rb .php .cs .fs .swift .kt .scala .lua .pl .r .jl"
        " .dart .ex .erl .hs .clj .sh .bash .zsh .fish .ps1 .bat .sql .css .scss .less .tex .yaml .yml .toml .ini"
        " .cfg .conf .properties .xml .proto .graphql .tf .cmake .gradle .diff .patch .srt .vtt .log"
    ),
    "text/markdown": ".md .markdown",
    "application/pdf": ".pdf",
    "application/rtf": ".rtf",
    "application/epub+zip": ".epub",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx .docm",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx .pptm",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx .xlsm",
    "application/msword": ".doc",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "image/png": ".png",
    "image/jpeg": ".jpg .jpeg",
    "image/tiff": ".tif .tiff",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
    "image/gif": ".gif",
}
MEDIA_TYPES: Final[Mapping[str, str]] = {
    extension: kind for kind, extensions in _EXTENSIONS_OF.items() for extension in extensions.split()
}
EXTENSIONS: Final = tuple(MEDIA_TYPES)
# To be named where all of them would be too many.
USUAL: Final = (".pdf", ".docx", ".pptx", ".xlsx", ".html", ".md", ".txt")

FILE_POLICY: Final = "default-src 'none'; sandbox; frame-ancestors 'none'"
