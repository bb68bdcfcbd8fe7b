"""Plots are well formed and show every point, whatever was measured."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bench import curves

values = st.floats(1e-4, 1e7)


def points(who: str, sizes: list[int], counts: list[int], value: float, *, etcd: bool) -> list[dict[str, float]]:
    names = ["p50_ms", "cpu_ms", "bytes", "memory_mb", "raw_p50_ms", "raw_cpu_ms", "raw_bytes"]
    names += ["last_ms", "etcd_cpu_ms", "etcd_memory_mb", "peak_mb"] if etcd else []
    return [{"instances": n, who: w, **dict.fromkeys(names, value * n * w)} for n in sizes for w in counts]


@given(
    st.sets(st.integers(1, 100_000), min_size=2, max_size=5),
    st.sets(st.integers(1, 500), min_size=1, max_size=4),
    values,
    st.booleans(),
)
def test_every_point_is_drawn_inside_of_the_picture(
    sizes: set[int], counts: set[int], value: float, etcd: bool
) -> None:
    rows = [
        {"row": "discovery.notice", "curve": points("watchers", sorted(sizes), sorted(counts), value, etcd=etcd)},
        {"row": "discovery.plane", "curve": points("clients", sorted(sizes), sorted(counts), value, etcd=etcd)},
    ]
    drawn = curves.pictures(rows)
    assert drawn.keys() == {"discovery.svg", "discovery-plane.svg"}
    for text in drawn.values():
        picture = ElementTree.fromstring(text)
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        dots = picture.findall("{http://www.w3.org/2000/svg}circle")
        assert len(dots) == (6 if etcd else 4) * len(sizes) * len(counts)
        for dot in dots:
            assert 0 < float(dot.attrib["cx"]) < width
            assert 0 < float(dot.attrib["cy"]) < height


def test_without_figures_there_is_no_picture() -> None:
    assert curves.pictures([{"row": "discovery.notice", "skipped": "no etcd"}]) == {}


def test_what_is_too_little_to_be_seen_is_left_out_and_the_rest_is_drawn() -> None:
    curve = points("clients", [1, 100], [1, 10], 1.0, etcd=True)
    for point in curve[1::2]:
        point["etcd_cpu_ms"] = -0.2
    drawn = curves.pictures([{"row": "discovery.plane", "curve": curve}])["discovery-plane.svg"]
    assert (drawn.count("<circle"), drawn.count(">10 clients<"), drawn.count(">1 client<")) == (6 * 4 - 2, 5, 6)
    for point in curve:
        point["etcd_cpu_ms"] = 0.0
    drawn = curves.pictures([{"row": "discovery.plane", "curve": curve}])["discovery-plane.svg"]
    assert (drawn.count("<circle"), drawn.count("CPU of etcd")) == (5 * 4, 0)
