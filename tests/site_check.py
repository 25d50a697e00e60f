"""The built site, `python tests/site_check.py docs/_build/html`: every link within it leads somewhere, and no page asks
another host for a script, a style, a font or a picture."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("link", "href")}
OTHER_HOST = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(?:https?:)?//", re.IGNORECASE)


class Page(HTMLParser):
    """The anchors of a page, the addresses it links to, and those it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value or "")
            elif (tag, name) in LOADED:
                self.loads.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")


def faults(site: Path) -> list[str]:
    """A line for each link that leads nowhere and each file that another host would be asked for."""
    files = [
        path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    ]  # a theme may have templates there
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in files}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for address in page.loads:
            parts = urlsplit(address)
            if parts.netloc:
                found.append(f"{name} loads {address} from another host")
            elif parts.scheme != "data" and not (path.parent / unquote(parts.path)).exists():
                found.append(f"{name} loads {address}, which is not there")
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name} links to {address}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} links to {address}, which has no such place")
    for path in sorted(site.rglob("*.css")):
        if OTHER_HOST.search(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)} loads from another host")
    return found if pages else [f"{site} has no pages"]


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]))
    print("\n".join(lines))
    raise SystemExit(bool(lines))
