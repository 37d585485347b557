"""Learned editors: an editor network, or a memory, that is trained on episodes of (edit, equivalent, unrelated).

    alg = algorithm("mend").build(model, inner_params, options)     # an Editable: the model and its editor network
    edited, info = alg.edit(episode.edit_inner)                     # a copy that answers with the edit; the model is untouched
    trainer.Trainer(alg, config, train, validation, folder).run()   # learns the network
"""
