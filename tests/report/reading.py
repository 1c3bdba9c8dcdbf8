"""Read a page as a program: its tags, its text, and the numbers that it says are the record's."""

import json
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects tags with attributes, text outside style and script, fields, and the JSON that scripts hold."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.fields, self.json = [], [], {}, {}
        self.hints, self._narrow = [], False  # of charts, in order; the drawing for narrow columns says the same again
        self._field = self._script = None
        self._skip = self._joined = False

    def handle_starttag(self, tag, attributes):
        if tag == "wbr":  # the word goes on: a line may end here, and that is all
            self._joined = True
            return
        values = dict(attributes)
        self.tags.append((tag, values))
        self._narrow = values.get("class") == "narrow" if tag == "svg" else self._narrow
        if not self._narrow and tag == "path" and "data-tip" in values:
            self.hints.append(values["data-tip"])
        if "data-field" in values:
            self._field = values["data-field"]
            self.fields[self._field] = (values["data-value"], "")
        if tag in ("style", "script"):
            self._skip = True
            self._script = values.get("id")

    def handle_endtag(self, tag):
        self._narrow = self._narrow and tag != "svg"
        if tag in ("style", "script"):
            self._skip, self._script = False, None
        if tag == "span":
            self._field = None

    def handle_data(self, data):
        if self._script is not None:
            self.json[self._script] = json.loads(data)
        elif not self._skip:
            if self._joined:
                self.words[-1] += data
            else:
                self.words.append(data)
            self._joined = False
            if self._field is not None:
                value, text = self.fields[self._field]
                self.fields[self._field] = (value, text + data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def structure(self):
        """The page without its text: tags and the names of their attributes."""
        return [(tag, tuple(sorted(values))) for tag, values in self.tags]


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader
