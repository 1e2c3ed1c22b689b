"""The stages on their own, without the ladder: a model and samples in, files out, nothing judged.

    source     what is given: a torch factory or an .onnx file, and samples of its inputs
    lowering   convert and quantize
    pruning    prune, recover and convert
    bundling   any model file, a vendor's too, as a bundle
    reference  the model that it was made from, which validate compares it with

Whatever is written is written whole or not at all.
"""
