"""XML from anywhere: entities, document types and the network stay off; it nests at most 256 deep (libxml2's bound)."""

from __future__ import annotations

from lxml import etree

from pipelines.bounds import BOUNDS


class XmlError(ValueError):
    """Text that is not acceptable XML.

    Attributes:
        line: where.
        kind: the reason without a word of the text itself, for texts that name patients.
    """

    def __init__(self, line: int, reason: str, kind: str | None = None) -> None:
        super().__init__(reason)
        self.line = line
        self.kind = kind or reason


def parse_xml(raw: bytes, limit: int = BOUNDS.xml_bytes) -> etree._Element:
    """The root element.

    Raises:
        XmlError: longer than `limit` bytes, not well-formed, or it declares a document type (entities can hide anything
            there).
    """
    if len(raw) > limit:
        raise XmlError(1, f"expected at most {limit} bytes of XML, got {len(raw)}")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(raw, parser)
    except etree.XMLSyntaxError as error:
        raise XmlError(error.lineno or 1, f"not well-formed XML: {error.msg}", _kind(error)) from None
    if root.getroottree().docinfo.doctype:
        raise XmlError(1, "a document type declaration is not taken; remove <!DOCTYPE ...>")
    return root


def _kind(error: etree.XMLSyntaxError) -> str:
    """ "not well-formed XML (tag name mismatch)": libxml2's messages quote the text, the names of its errors do not."""
    last = error.error_log.last_error
    name = last.type_name.removeprefix("ERR_").replace("_", " ").lower() if last else "document empty"
    return f"not well-formed XML ({name})"
