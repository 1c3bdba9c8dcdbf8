"""Studies: many cells of training and evaluation from one recipe, analysed with paired statistics over seeds."""
