"""What the columns of a table are, as a VOTable without data: for the headers of other formats.

FITS files carry it as STIL's `fits-plus` does (TOPCAT reads it from there), Parquet files by the
IVOA note VOParquet 1.0 (2025).
"""

from xml.etree import ElementTree

NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"
DATATYPES = {"i2": "short", "i4": "int", "i8": "long", "f4": "float", "f8": "double"}


def votable(columns, about, title) -> str:
    """XML of a VOTable whose one table has the columns (`FlatColumn`) and no data.

    about: {name: text}, told of the table.
    """
    root = ElementTree.Element("VOTABLE", version="1.4", xmlns=NAMESPACE)
    table = ElementTree.SubElement(ElementTree.SubElement(root, "RESOURCE"), "TABLE")
    table.set("name", "catalogue")
    ElementTree.SubElement(table, "DESCRIPTION").text = title
    for name, text in about.items():
        ElementTree.SubElement(
            table, "PARAM", name=name, datatype="char", arraysize="*", value=str(text)
        )
    for column in columns:
        given = {"name": column.name, "datatype": DATATYPES.get(column.dtype, "char")}
        if column.dtype not in DATATYPES:
            given["arraysize"] = "*"
        given |= {k: v for k, v in (("unit", column.unit), ("ucd", column.ucd)) if v}
        field = ElementTree.SubElement(table, "FIELD", given)
        ElementTree.SubElement(field, "DESCRIPTION").text = column.text
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return head + ElementTree.tostring(root, encoding="unicode")
