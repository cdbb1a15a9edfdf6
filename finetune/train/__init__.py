"""How a run trains: the model, the trainers of each objective, the watch, evaluation."""
