"""Real files of every kind, made small: as good as programs write them, and as bad as they come."""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence

import pypdfium2 as pdfium

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0\x1f\x15\xc4\x89" + bytes(64)
# Nine levels of ten: 10^9 times "lol" when unfolded.
BILLION_LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [\n<!ENTITY lol0 "lol">\n'
    + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">\n' for n in range(1, 10))
    + "]>\n"
)
_CONTAINER = "urn:oasis:names:tc:opendocument:xmlns:container"
_TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/><Default Extension="png" ContentType="image/png"/>'
    '<Override PartName="/word/document.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>'
    '<Override PartName="/word/styles.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.wordprocessingml.styles+xml"/></Types>'
)
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def archive(members: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def docx(
    paragraphs: Iterable[tuple[str, str]],
    rows: Iterable[Sequence[str]] = (),
    before: str = "",
    members: dict[str, str | bytes] | None = None,
) -> bytes:
    """A Word file of (style, text) paragraphs and one table; `before` stands before its XML, `members` are added."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    cells = "".join(
        f"<w:tr>{''.join(f'<w:tc><w:p><w:r><w:t>{c}</w:t></w:r></w:p></w:tc>' for c in row)}</w:tr>" for row in rows
    )
    table = f"<w:tbl>{cells}</w:tbl>" if cells else ""
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/></w:style>'
        for n in range(1, 4)
    )
    return archive(
        {
            "[Content_Types].xml": _TYPES,
            "_rels/.rels": _RELATIONS.format(
                f'<Relationship Id="r1" Type="{_OFFICE}/officeDocument" Target="word/document.xml"/>'
            ),
            "word/_rels/document.xml.rels": _RELATIONS.format(
                f'<Relationship Id="r1" Type="{_OFFICE}/styles" Target="styles.xml"/>'
            ),
            "word/styles.xml": f'<w:styles xmlns:w="{_WORD}">{styles}</w:styles>',
            "word/document.xml": (f'{before}<w:document xmlns:w="{_WORD}"><w:body>{body}{table}</w:body></w:document>'),
            **(members or {}),
        }
    )


def pptx(slides: Iterable[tuple[str, str, str]], picture: bool = False) -> bytes:
    """A presentation of (title, text, notes) slides."""
    import pptx as library
    from PIL import Image

    presentation = library.Presentation()
    for title, text, notes in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    if picture:
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "PNG")
        image.seek(0)
        presentation.slides[0].shapes.add_picture(image, 0, 0)
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def xlsx(sheets: dict[str, Iterable[Sequence[object]]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def epub(title: str, chapters: dict[str, str]) -> bytes:
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    pages: dict[str, str | bytes] = {
        f"OEBPS/c{n}.xhtml": f'<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml">'
        f"<head><title>{heading}</title></head><body><h1>{heading}</h1><p>{text}</p></body></html>"
        for n, (heading, text) in enumerate(chapters.items())
    }
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": f'<container xmlns="{_CONTAINER}"><rootfiles><rootfile full-path="OEBPS/c.opf"'
            ' media-type="application/oebps-package+xml"/></rootfiles></container>',
            "OEBPS/c.opf": '<package xmlns="http://www.idpf.org/2007/opf"'
            f' xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>{title}</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            **pages,
        }
    )


def notebook(cells: Iterable[tuple[str, str]]) -> bytes:
    made = [{"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)} for kind, text in cells]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made}).encode()


def pdf(pages: Iterable[str], encrypted: bool = False) -> bytes:
    """Pages of ASCII text, one line each; an empty string is a page with nothing on it."""
    texts = list(pages)
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for text in texts:
        stream = f"BT /F1 40 Tf 50 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {len(objects) + 2} 0 R>>"
        )
        objects.append(f"<</Length {len(stream)}>>\nstream\n{stream}\nendstream")
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(texts)))
    objects[1] = f"<</Type/Pages/Count {len(texts)}/Kids[{kids}]>>"
    trailer = f"/Size {len(objects) + 1}/Root 1 0 R"
    if encrypted:
        # Neither the empty password nor any other fits these digests.
        trailer += (
            f"/ID[<{'00' * 16}><{'00' * 16}>]/Encrypt<</Filter/Standard/V 1/R 2/O<{'11' * 32}>/U<{'22' * 32}>/P -4>>"
        )
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<<{trailer}>>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + end.encode()


def scanned(text: str, copies: int = 1) -> bytes:
    """A PDF whose pages are pictures of a page with that text on it."""
    with pdfium.PdfDocument(pdf([text])) as typed:
        picture = typed[0].render(scale=200 / 72).to_pil().convert("L")
    buffer = io.BytesIO()
    picture.save(buffer, "PDF", resolution=200, save_all=True, append_images=[picture] * (copies - 1))
    return buffer.getvalue()


def encrypted_office() -> bytes:
    """The container that Office puts around a file with a password: its magic, and the names in its directory."""
    names = b"".join(name.encode("utf-16-le").ljust(128, b"\0") for name in ("EncryptionInfo", "EncryptedPackage"))
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + names


def zip_bomb(megabytes: int = 300) -> bytes:
    """A Word file of a few hundred kilobytes that unpacks to as many megabytes."""
    return docx([("Normal", "boom")], members={"word/media/bomb.bin": bytes(megabytes * 1_000_000)})
