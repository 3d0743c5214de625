"The picture that others show where a page is linked, docs/_static/card.png: `python docs/card.py`, from synthetic images"
from pathlib import Path

import matplotlib.pyplot as plt
from nbdev.config import get_config
from PIL import Image

from cifar_fastai.sources import find_data

def card():
    cfg = get_config()
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor='#14181d')
    figure.text(.06, .78, cfg.title, size=58, weight='bold', color='white', va='center')
    figure.text(.06, .6, cfg.description, size=24, color='#c8d0da', va='center')
    for i, folder in enumerate(sorted((find_data('synthetic')/'train').iterdir())):
        ax = figure.add_axes([.06 + .0885*i, .16, .0825, .28])
        ax.imshow(Image.open(sorted(folder.iterdir())[1]))
        ax.axis('off')
    return figure

if __name__ == '__main__':
    file = Path(__file__).parent / '_static/card.png'
    card().savefig(file, facecolor='#14181d')
    Image.open(file).convert('P', palette=Image.Palette.ADAPTIVE, colors=128).save(file, optimize=True)
