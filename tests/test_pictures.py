"""Pictures are whole or absent, the same for the same content, and tell lines apart."""

import pytest

from nystromformer.pictures import STYLES, legend_below, picture, plot_events, style_of

EVENTS = [{"step": 1, "loss": 3.0}, {"step": 2}, {"step": 3, "loss": 1.0}]


def draw(path, title="a title"):
    with picture(path, 1, 2, width="page", title=title, legends=True) as (_, (left, right)):
        plot_events(left, EVENTS, "loss", label="loss")
        plot_events(right, EVENTS, "loss", after=10, factor=100)
    return left, right


def test_a_line_is_of_the_events_that_have_the_figure(tmp_path):
    left, right = draw(tmp_path / "a.png")
    assert left.lines[0].get_xydata().tolist() == [[1, 3], [3, 1]]
    assert right.lines[0].get_xydata().tolist() == [[11, 300], [13, 100]]
    assert left.get_legend() is not None
    assert right.get_legend() is None


def test_the_same_picture_is_the_same_file(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw(tmp_path / "b.png", "another title")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_failed_drawing_or_writing_leaves_the_picture_before(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    draw(path)
    before = path.read_bytes()
    with pytest.raises(KeyError), picture(path) as (_, axes):
        plot_events(axes, [{"loss": 1}], "loss")

    def full(figure, place, **_):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_lines_differ_without_colour():
    styles = [style_of(number) for number in range(2 * len(STYLES))]
    looks = {(style["marker"], str(style["linestyle"]), style.get("markerfacecolor")) for style in styles}
    assert len(looks) == len(styles)


def test_a_legend_below_is_no_wider_than_the_figure(tmp_path):
    columns = {}
    for name in ("short", "nystromformer, composed of PyTorch's operators"):
        with picture(tmp_path / "a.png", width="page", height=2.6) as (figure, axes):
            for number in range(6):
                axes.plot([1, 2], [number, 3], label=f"{name} {number}")
            legend_below(figure, axes, columns=3)
            (legend,) = figure.legends
            assert legend.get_window_extent().width <= figure.bbox.width
            columns[name] = legend._ncols
    assert [*columns.values()] == [3, 2]
