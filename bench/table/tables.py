"""Results as lines of a Markdown table."""

COLUMNS = ("", "work", "millraced", "beside", "compared (least to most)", "goal", "stolen")


def number(value, unit):
    if unit == "/s":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"
    if unit == "cycles":
        return f"{value:,.0f} cycles"
    return f"{value:.3g} {unit}"


def amount(side, figure, unit):
    """A side's figure; beside cycles the rate of the work, client included."""
    text = number(side[figure], unit)
    if figure == "cycles" and side.get("rate") is not None:
        text += f", {number(side['rate'], '/s')}"
    return text


def goal_of(result):
    goal = result["goal"]
    if result["kind"] == "least":
        return f"at least {goal:.2f}"
    if result["kind"] == "added":
        return f"at most {goal:g} {result['unit']} more"
    if result["kind"] == "value":
        return f"at most {number(goal, result['unit'])}"
    return f"at most {goal:.2f}"


def compared_of(result):
    seen, unit = result["compared"], f" {result['unit']}" * (result["kind"] in ("added", "value"))
    if seen["least"] == seen["most"]:
        return f"{seen['median']:.3g}{unit}"
    form = ",.0f" if seen["median"] >= 100 else ".2f"
    return (f"{seen['median']:{form}}{unit} ({seen['least']:{form}} to "
            f"{seen['most']:{form}})")


def title_of(result):
    figure = result["figure"]
    words = {"cycles": "", "rate": "", "percent": ""}.get(figure, f": {figure}")
    return result["title"] + words


def cells(result):
    """A result's cells, in the order of COLUMNS."""
    stolen = f"{result.get('stolen_s', 0):.1f} s"
    if "error" in result:
        return [result["row"], result["title"], "-", "-", f"not measured: {result['error']}", "-",
                stolen]
    figure, unit = result["figure"], result["unit"]
    theirs = result["theirs"]
    beside = theirs["name"]
    if theirs.get(figure) is not None:
        beside += f" {amount(theirs, figure, unit)}"
    title = title_of(result) + (f" ({result['note']})" if result["note"] else "")
    goal = goal_of(result) + ("" if result["met"] else ", **missed**")
    return [result["row"], title, amount(result["ours"], figure, unit), beside,
            compared_of(result), goal, stolen]


def line_of(texts):
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def header():
    return line_of(COLUMNS) + "\n|" + "---|" * len(COLUMNS)


def markdown(results):
    return "\n".join([header(), *(line_of(cells(result)) for result in results)]) + "\n"
