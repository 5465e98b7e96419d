"""What holds between the plans of two stages."""


def never_more(was, made):
    """Assert that no layer is dense again, of another form, of a higher rank or dearer than in the stage before."""
    now = {step.layer: step for step in made.layers}
    assert made.macs <= was.macs
    assert made.params <= was.params
    for step in was.layers:
        assert (now[step.layer].method, now[step.layer].options) == (step.method, step.options)
        assert all(r <= limit for r, limit in zip(now[step.layer].rank, step.rank, strict=True)), step.layer
        assert now[step.layer].macs <= step.macs
        assert now[step.layer].params <= step.params
