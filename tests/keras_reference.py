"""Makes data/keras_reference.npz: what the published networks give in Keras, which test_keras_parity.py compares with ours.

Keras is in no requirement of this project, so this runs in an environment of its own; the file says which versions made it:

    uv venv --python 3.11 keras-env
    uv pip install --python keras-env tensorflow tf-keras
    keras-env/bin/python tests/keras_reference.py

The weights are not in the file: every array of weights is drawn anew, from its name (`draw`). Keras computes in 64 bits, so that
what is recorded holds no rounding errors of its own. tf-keras is Keras 2, with which networks were trained until 2024: it is asked
for BatchNorm's moving variances alone, in which it differs from Keras 3, and computes in 32 bits, as only then it differs."""
import json
import platform
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import numpy as np

path = Path(__file__).parent/'data'/'keras_reference.npz'
parameters = dict(three_block_cnn=2_397_226, wide_cnn=1_455_626, residual_cnn=17_001_930, ladder_3=282_634, ladder_4=282_634,
                  ladder_5=3_251_786, ladder_7=1_285_706)  # as published: "Total params"


# --- what the test uses too: NumPy alone

def stream(name):
    "Random numbers that belong to `name`; NumPy promises never to change RandomState's, unlike those of default_rng"
    return np.random.RandomState(crc32(name.encode()))

def draw(name, shape):
    "The weights called `name`: network/layer/kind, kind one of kernel, bias, gamma, beta, moving_mean, moving_variance"
    ranges = dict(bias=(-.1, .1), gamma=(.5, 1.5), beta=(-.3, .3), moving_mean=(-.5, .5), moving_variance=(.5, 1.5))
    bound = (4 / np.prod(shape[:-1]))**.5  # outputs stay of the size of 1, so that 1e-4 asks for much
    low,high = ranges.get(name.rsplit('/')[-1], (-bound, bound))
    return stream(name).uniform(low, high, shape).astype(np.float32)

def images(n=8): return stream('images').uniform(0, 1, (n, 32, 32, 3)).astype(np.float32)

def labels(n=8): return np.arange(n) % 10

def sample(x, n=500):
    "`n` numbers of an array, from the same places each time; all of a small one"
    x = np.asarray(x)
    return (x if x.size <= n else x.reshape(-1)[stream('places').randint(0, x.size, n)]).astype(np.float32)


# --- the networks, in Keras' words

class Builder:
    "Layers named block1_conv1, block1_norm1, ..., dense1, ..., and the outputs of blocks"
    def __init__(self, keras, dropout):
        self.layers,self.regularizers,self.dropout,self.outputs = keras.layers,keras.regularizers,dropout,{}

    def drop(self, x, rate): return self.layers.Dropout(rate if self.dropout else 0.)(x) if rate else x

    def conv(self, x, nf, name, size=3, activation='relu', l2=0.):
        return self.layers.Conv2D(nf, size, padding='same', activation=activation, name=name,
                                  kernel_regularizer=self.regularizers.L2(l2) if l2 else None)(x)

    def blocks(self, x, widths, depth=1, norm_first=False, dropout=(0., 0., 0.), l2=0.):
        "Blocks of `depth` convolutions, each with BatchNorm, ending in a max-pool and dropout"
        for b,(nf,rate) in enumerate(zip(widths, dropout), 1):
            for i in range(1, depth + 1):
                x = self.conv(x, nf, f'block{b}_conv{i}', activation=None if norm_first else 'relu', l2=l2)
                x = self.layers.BatchNormalization(name=f'block{b}_norm{i}')(x)
                if norm_first: x = self.layers.Activation('relu')(x)
            x = self.outputs[f'block{b}'] = self.layers.MaxPooling2D(2)(x)
            x = self.drop(x, rate)
        return x

    def shortcut_stages(self, image, widths, depths, l2):
        "Stages that add 1x1(shrunken image) and 1x1(previous stage) to their convolutions, then BatchNorm and max-pool"
        x = image
        for b,(nf,depth) in enumerate(zip(widths, depths), 1):
            small = image if b == 1 else self.layers.AveragePooling2D(2**(b - 1))(image)
            terms = [self.conv(small, nf, f'block{b}_from_image', 1, None)]
            if b > 1: terms.append(self.conv(x, nf, f'block{b}_from_previous', 1, None))
            for i in range(1, depth + 1): x = self.conv(x, nf, f'block{b}_conv{i}', l2=l2)
            x = self.layers.BatchNormalization(name=f'block{b}_norm1')(self.layers.Add()([x, *terms]))
            x = self.outputs[f'block{b}'] = self.layers.MaxPooling2D(2)(x)
        return x

    def head(self, x, widths, dropout=0., first_dropout=0., pool=False):
        "Dense layers with ReLU and dropout, then scores and probabilities"
        x = self.layers.GlobalAveragePooling2D()(x) if pool else self.layers.Flatten()(x)
        x = self.drop(x, first_dropout)
        for i,n in enumerate(widths, 1): x = self.drop(self.layers.Dense(n, activation='relu', name=f'dense{i}')(x), dropout)
        self.outputs['scores'] = self.layers.Dense(10, name=f'dense{len(widths) + 1}')(x)
        self.outputs['probabilities'] = self.layers.Softmax()(self.outputs['scores'])

networks = dict(
    three_block_cnn=lambda b,x: b.head(b.blocks(x, (32, 64, 128), depth=2), (1024,), .2, first_dropout=.2),
    wide_cnn=lambda b,x: b.head(b.blocks(x, (64, 128, 256)), (256, 128), .5),
    residual_cnn=lambda b,x: b.head(b.shortcut_stages(x, (64, 128, 256, 512, 512), (2, 2, 3, 3, 3), l2=1e-4), (1024, 1024, 256), .3),
    ladder_3=lambda b,x: b.head(b.blocks(x, (32, 64), norm_first=True), (64,)),
    ladder_4=lambda b,x: b.head(b.blocks(x, (32, 64), dropout=(.25, .25)), (64,), .5),
    ladder_5=lambda b,x: b.head(b.blocks(x, (64, 128, 256), depth=2, dropout=(.2, .3, .4)), (512,), .5),
    ladder_7=lambda b,x: b.head(b.blocks(x, (64, 128, 256), depth=2, norm_first=True, dropout=(.2, .3, .4), l2=.01), (512,), .5, pool=True))

def build(keras, name, dropout=True):
    "The network `name` as a Keras model that gives its blocks' outputs too"
    x,builder = keras.Input((32, 32, 3)),Builder(keras, dropout)
    networks[name](builder, x)
    return keras.Model(x, builder.outputs)


# --- what is recorded

def weights(model):
    "{layer/kind: weights}, as Keras 3 and Keras 2 have them"
    return {f'{layer.name}/{w.name.split("/")[-1].split(":")[0]}': w for layer in model.layers for w in layer.weights}

def fill(model, name):
    "Give `model` the weights drawn for the network `name`"
    for k,w in weights(model).items(): w.assign(draw(f'{name}/{k}', tuple(w.shape)))
    return model

def describe(keras, name):
    "What Keras says of a network before anything is computed"
    model = build(keras, name)
    if model.count_params() != parameters[name]: raise SystemExit(f'{name}: {model.count_params():,} parameters, published {parameters[name]:,}')
    of = lambda kind: [layer for layer in model.layers if isinstance(layer, kind)]
    kernels = {k: w.numpy() for k,w in weights(model).items() if k.endswith('kernel')}
    return dict(parameters=model.count_params(), trainable=int(sum(np.prod(w.shape) for w in model.trainable_weights)),
                weights={k: list(w.shape) for k,w in weights(model).items()}, dropout=[o.rate for o in of(keras.layers.Dropout)],
                norm=sorted({(o.epsilon, o.momentum) for o in of(keras.layers.BatchNormalization)}),
                initial_kernels={k: [float(abs(w).max()), float(w.std())] for k,w in kernels.items()},
                initial_others={k: float(w.numpy().mean()) for k,w in weights(model).items() if k not in kernels})

def step(keras, model, opt):
    "One step on the images: outputs, loss, its L2 part, and norms of the gradients"
    import tensorflow as tf
    with tf.GradientTape() as tape:
        out = model(images(), training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels(), out['probabilities']))
        l2 = tf.add_n(model.losses) if model.losses else tf.zeros_like(loss)
        total = loss + l2
    moving = {k: w.numpy() for k,w in weights(model).items() if 'moving' in k}
    names = {id(w): k for k,w in weights(model).items()}
    grads = tape.gradient(total, model.trainable_weights)
    norms = {names[id(w)]: float(tf.norm(g)) for w,g in zip(model.trainable_weights, grads)}
    opt.apply_gradients(zip(grads, model.trainable_weights))
    return out,moving,dict(loss=float(total), l2=float(l2), gradients=norms)

def record(keras, keras_2, name):
    "Figures and arrays of a network: as it predicts, and in three steps of training without dropout"
    model = fill(build(keras, name, dropout=False), name)
    arrays = {f'inference/{k}': sample(v) for k,v in model(images(), training=False).items()}
    opt = keras.optimizers.Adam(1e-4)
    out,moving,first = step(keras, model, opt)
    losses = [step(keras, model, opt)[-1]['loss'] for _ in range(3)]
    older = fill(build(keras_2, name, dropout=False), name)
    older(images(), training=True)
    arrays |= {f'training/{k}': sample(v) for k,v in out.items()} | {f'moving/{k}': v.astype(np.float32) for k,v in moving.items()}
    arrays |= {f'moving_keras_2/{k}': w.numpy() for k,w in weights(older).items() if 'moving_variance' in k}
    return describe(keras, name) | first | dict(losses_after_steps=losses), {f'{name}/{k}': v for k,v in arrays.items()}

def main():
    import keras
    import tf_keras
    keras.config.set_floatx('float64')
    about,arrays = dict(versions={'python': platform.python_version(), **{o: version(o) for o in ('tensorflow', 'keras', 'tf-keras', 'numpy')}}),{}
    for name in networks:
        keras.utils.set_random_seed(0)
        about[name],new = record(keras, tf_keras, name)
        arrays |= new
        print(f'{name}: {about[name]["parameters"]:,} parameters, L2 {about[name]["l2"]:.4g}, loss {about[name]["loss"]:.4f}')
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, about=json.dumps(about), **arrays)
    print(f'{path}: {path.stat().st_size:,} bytes')

if __name__ == '__main__': main()
