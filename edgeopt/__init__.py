"""edgeopt finds the fastest, leanest artifact of a trained model that keeps its accuracy on a board; proves it there.

The map, in processing order:

    profile, model, onnx_model, task, parts, tasks/, decode   what is given: a board, a trained model, labelled samples
    scaffold/              a first run file from a look at model and data (`edgeopt init`)
    provenance             which board that really is, and where it is not the profile's
    runfile, plan          what is fixed before work starts: budgets, floors, rungs, splits, seeds; onboard: as far as
                           the board can follow it, sensing: with which sensor, under which clocks
    compress/              prune and recover (torch)
    lower/, parity         to a runtime's artifact; file name = runtime name; ethosu compiles one for an NPU
    device/, measure       the agent on the board: raw samples; stats turns them into figures with their validity,
                           slices into scores by class and group; conditions says what the board was like, placement
                           where each operator ran; sustained, load: a long run, many queries
    meters/, align, power, energy   watts of a sensor or a meter, its clock against the board's, joules
    data, ladder           the samples, read and split; propose, judge, choose; stages runs a recipe's steps through
                           the cache, sampled its watts
    trial, pack, optimize  one trial; the chosen candidate as a bundle; the whole climb
    bundle, flash, validate   one file by hash; atomic, reversible; checked on the board
    diagnose/              where a wrong answer begins
    evidence, recompute, cost   what a run's figures rest on; all of them again; what they cost
    report/, cli/          what people see
"""
