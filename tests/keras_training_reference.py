"""Makes data/keras_training.json: how Keras trains, which test_keras_training.py compares with our training.

It runs in the environment that keras_reference.py describes: `keras-env/bin/python tests/keras_training_reference.py`. Keras computes in
64 bits; tf-keras is Keras 2. Weights, images and gradients are drawn from their names, so the file has only what Keras made of them."""
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from keras_reference import images, labels, stream

path = Path(__file__).parent/'data'/'keras_training.json'
shapes = {'conv/kernel': (3, 3, 3, 4), 'conv/bias': (4,), 'norm/gamma': (4,), 'norm/beta': (4,), 'norm/moving_mean': (4,),
          'norm/moving_variance': (4,), 'dense/kernel': (4, 10), 'dense/bias': (10,)}
start = [1., -2., .5, 3.]
sizes = [1., 1e-3, 1e-6, 1e-8]  # of gradients: the smallest are of the size of epsilon
class_weights = {3: 2., 5: 2.}
# Ties, changes below 1e-4, a plateau, and a late best value after which nothing improves
losses = [2., 1.5, 1.6, 1.5, 1.49995, 1.4999, 1.4, 1.45, 1.44, 1.39999, 1.41, 1.3, 1.3, 1.29995, 1.2999, 1.2998, 1.2997, 1.2, 1.25, 1.24, 1.23,
          1.22, 1.21, 1.205, 1.204, 1.203]
accuracies = [.3, .4, .4, .40005, .4001, .40011, .5, .49, .48, .47, .6, .6, .60009, .60012, .6, .59, .58, .61, .6, .59, .58, .57, .56, .55, .54, .53]
plateaus = {'loss': dict(monitor='val_loss', mode='min', min_lr=1e-6), 'accuracy': dict(monitor='val_accuracy', mode='max', min_lr=2e-4)}


# --- what the test uses too: NumPy alone

def weights(): return {name: stream(f'training/{name}').uniform(.5, 1.5, shape) - (0 if 'gamma' in name or 'variance' in name else 1)
                       for name,shape in shapes.items()}

def gradients(n=10):
    "For `n` steps, of four numbers of very different size"
    return stream('gradients').uniform(-1, 1, (n, 4))*sizes


# --- Keras

def optimizers(keras):
    "Four numbers after each of ten steps"
    made = dict(adam=keras.optimizers.Adam(1e-3), rmsprop=keras.optimizers.RMSprop(1e-3), sgd=keras.optimizers.SGD(.01, momentum=.9, nesterov=True))
    def values(opt):
        v = keras.Variable(np.array(start))
        for g in gradients():
            opt.apply([keras.ops.convert_to_tensor(g)], [v])
            yield v.numpy().tolist()
    return {name: list(values(opt)) for name,opt in made.items()}

def build(keras, training=None):
    "A convolution with BatchNorm as a base, then average pooling and a dense layer; the base is called with `training`"
    layers = keras.layers
    x = keras.Input((32, 32, 3))
    base = keras.Model(x, layers.Activation('relu')(layers.BatchNormalization(name='norm')(layers.Conv2D(4, 3, padding='same', name='conv')(x))))
    x = keras.Input((32, 32, 3))
    model = keras.Model(x, layers.Dense(10, activation='softmax', name='dense')(layers.GlobalAveragePooling2D()(base(x, training=training))))
    for name,value in weights().items(): all_weights(model)[name].assign(value)
    return model,base

def all_weights(model):
    found = {}
    def visit(layer):
        for o in getattr(layer, 'layers', []): visit(o)
        if not hasattr(layer, 'layers'): found.update({f'{layer.name}/{w.name.split("/")[-1].split(":")[0]}': w for w in layer.weights})
    visit(model)
    return found

def state(model): return {name: w.numpy().tolist() for name,w in all_weights(model).items()}

def compiled(keras, model, opt=None):
    model.compile(opt or keras.optimizers.SGD(.5), 'sparse_categorical_crossentropy', jit_compile=False)
    return model

def batchnorm(keras, keras_2):
    """The weights after three steps on one batch, in each mode.

    `training=False` at the call of the base counts in Keras 2; in the Keras 3 used here, `fit` overrides it, as the last mode shows."""
    for mode,library,training in ('train', keras, None), ('weights', keras_2, False), ('frozen', keras, None), ('weights_keras_3', keras, False):
        model,base = build(library, training)
        base.trainable = mode != 'frozen'
        compiled(library, model)
        for _ in range(3): model.train_on_batch(images(), labels())
        yield mode,state(model)

def last_batch(keras):
    "An epoch of ten images in batches of four"
    model = compiled(keras, build(keras)[0], keras.optimizers.Adam(1e-3))
    model.fit(images(10), labels(10), batch_size=4, epochs=1, shuffle=False, verbose=0)
    return dict(steps=int(model.optimizer.iterations.numpy()), weights=state(model))

def weighted_loss(keras):
    model = compiled(keras, build(keras)[0])
    return float(model.train_on_batch(images(), labels(), class_weight=class_weights))

def callbacks(keras):
    "When training stops, whose weights it leaves, and the learning rate after each epoch; in epoch i all biases are i"
    for name,kwargs in plateaus.items():
        model = compiled(keras, build(keras)[0], keras.optimizers.Adam(1e-3))
        cbs = keras.callbacks.CallbackList([keras.callbacks.EarlyStopping('val_loss', patience=5, restore_best_weights=True),
                                            keras.callbacks.ReduceLROnPlateau(factor=.5, patience=3, **kwargs)], model=model)
        model.stop_training,rates = False,[]
        cbs.on_train_begin()
        for i,(loss,accuracy) in enumerate(zip(losses, accuracies)):
            model.get_layer('dense').bias.assign(np.full(10, float(i)))
            cbs.on_epoch_end(i, dict(val_loss=loss, val_accuracy=accuracy))
            rates.append(float(model.optimizer.learning_rate.numpy()))
            if model.stop_training: break
        cbs.on_train_end()
        yield name,dict(epochs=len(rates), best=int(model.get_layer('dense').bias.numpy()[0]), rates=rates)

def main():
    import keras
    import tf_keras
    keras.config.set_floatx('float64')
    tf_keras.backend.set_floatx('float64')
    versions = {'python': platform.python_version(), **{o: version(o) for o in ('tensorflow', 'keras', 'tf-keras', 'numpy')}}
    found = dict(versions=versions, optimizers=optimizers(keras), batchnorm=dict(batchnorm(keras, tf_keras)), last_batch=last_batch(keras),
                 weighted_loss=weighted_loss(keras), callbacks=dict(callbacks(keras)))
    path.write_text(json.dumps(found) + '\n')
    print(found['callbacks'], found['last_batch']['steps'], found['weighted_loss'])
    print(f'{path}: {path.stat().st_size:,} bytes')

if __name__ == '__main__': main()
