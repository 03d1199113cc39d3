"""Commands around a training: aligning a data set, exporting a model."""
