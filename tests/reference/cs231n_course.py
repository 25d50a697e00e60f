"""The course's definitions as plain loops, mended: sums accumulate, and each mode has its own gradient.

Written one sample, one channel, one window at a time, in float64, and independent of the library.
"""

from __future__ import annotations

import numpy as np


def affine(x, w, b, dout):
    """out, dx, dw, db."""
    out = np.zeros((len(x), w.shape[1]))
    dx, dw, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(b.shape)
    for n in range(len(x)):
        row = x[n].ravel()
        for m in range(w.shape[1]):
            out[n, m] = sum(row[d] * w[d, m] for d in range(len(row))) + b[m]
            db[m] += dout[n, m]
            for d in range(len(row)):
                dx[n].reshape(-1)[d] += dout[n, m] * w[d, m]
                dw[d, m] += dout[n, m] * row[d]
    return out, dx, dw, db


def softmax(x, y):
    """loss, dx."""
    loss, dx = 0.0, np.zeros(x.shape)
    for n, label in enumerate(y):
        powers = np.exp(x[n] - max(x[n]))
        loss += np.log(powers.sum()) + max(x[n]) - x[n, label]
        dx[n] = powers / powers.sum()
        dx[n, label] -= 1
    return loss / len(x), dx / len(x)


def svm(x, y):
    """loss, dx."""
    loss, dx = 0.0, np.zeros(x.shape)
    for n, label in enumerate(y):
        for k in range(x.shape[1]):
            margin = x[n, k] - x[n, label] + 1
            if k != label and margin > 0:
                loss += margin
                dx[n, k] += 1
                dx[n, label] -= 1
    return loss / len(x), dx / len(x)


def _standard(values, eps):
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    return (values - mean) / np.sqrt(var + eps), mean, var


def _standard_back(dhat, values, eps):
    """The gradient through mean and variance: both terms are sums over the same set that was standardised."""
    hat, _, var = _standard(values, eps)
    size = len(values)
    return (dhat - sum(dhat) / size - hat * sum(dhat * hat) / size) / np.sqrt(var + eps)


def _norm(x, gamma, beta, dout, sets, eps):
    """out, dx, dgamma, dbeta, where each of `sets` (index arrays) shares a mean and variance; channels are axis 1."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    hat, dx, dhat = np.zeros(x.shape), np.zeros(x.shape), dout * gamma.reshape(shape)
    for where in sets:
        hat[where] = _standard(x[where], eps)[0]
        dx[where] = _standard_back(dhat[where], x[where], eps)
    dgamma, dbeta = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for place in np.ndindex(*x.shape):
        dgamma[place[1]] += dout[place] * hat[place]
        dbeta[place[1]] += dout[place]
    return hat * gamma.reshape(shape) + beta.reshape(shape), dx, dgamma, dbeta


def _sets(shape, key):
    """The places of an array, as one mask for each value of key(place)."""
    keys = np.empty(shape, dtype=int)
    for place in np.ndindex(*shape):
        keys[place] = key(place)
    return [keys == k for k in np.unique(keys)]


def batch_norm(x, gamma, beta, dout, eps=1e-5):
    """Training; x (N, D) or (N, C, H, W)."""
    return _norm(x, gamma, beta, dout, _sets(x.shape, lambda place: place[1]), eps)


def running(x, old_mean, old_var, momentum=0.9):
    """The running mean and (biased) variance after a training forward on x."""
    means, variances = [], []
    for c in range(x.shape[1]):
        _, mean, var = _standard(x[:, c].ravel(), 0)
        means.append(momentum * old_mean[c] + (1 - momentum) * mean)
        variances.append(momentum * old_var[c] + (1 - momentum) * var)
    return np.array(means), np.array(variances)


def batch_norm_test(x, gamma, beta, dout, mean, var, eps=1e-5):
    """Evaluation: mean and var are constants, so dx has no other term."""
    out, dx = np.zeros(x.shape), np.zeros(x.shape)
    dgamma, dbeta = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for place in np.ndindex(*x.shape):
        c = place[1]
        hat = (x[place] - mean[c]) / np.sqrt(var[c] + eps)
        out[place] = gamma[c] * hat + beta[c]
        dx[place] = dout[place] * gamma[c] / np.sqrt(var[c] + eps)
        dgamma[c] += dout[place] * hat
        dbeta[c] += dout[place]
    return out, dx, dgamma, dbeta


def layer_norm(x, gamma, beta, dout, eps=1e-5):
    return _norm(x, gamma, beta, dout, _sets(x.shape, lambda place: place[0]), eps)


def group_norm(x, gamma, beta, groups, dout, eps=1e-5):
    each = x.shape[1] // groups
    return _norm(x, gamma, beta, dout, _sets(x.shape, lambda place: place[0] * groups + place[1] // each), eps)


def conv(x, w, b, stride, pad, dout):
    """out, dx, dw, db; dout None: out alone."""
    (n, _, h, width), (f, _, hh, ww) = x.shape, w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    oh, ow = 1 + (h + 2 * pad - hh) // stride, 1 + (width + 2 * pad - ww) // stride
    out, dxp, dw, db = np.zeros((n, f, oh, ow)), np.zeros(xp.shape), np.zeros(w.shape), np.zeros(f)
    for s, k, i, j in np.ndindex(*out.shape):
        at = (s, slice(None), slice(i * stride, i * stride + hh), slice(j * stride, j * stride + ww))
        out[s, k, i, j] = (xp[at] * w[k]).sum() + b[k]
        if dout is not None:
            dxp[at] += dout[s, k, i, j] * w[k]
            dw[k] += dout[s, k, i, j] * xp[at]
            db[k] += dout[s, k, i, j]
    return out if dout is None else (out, dxp[:, :, pad : pad + h, pad : pad + width], dw, db)


def max_pool(x, height, width, stride, dout, ties="all"):
    """out, dx; dout None: out alone."""
    n, c, h, w = x.shape
    out = np.zeros((n, c, 1 + (h - height) // stride, 1 + (w - width) // stride))
    dx = np.zeros(x.shape)
    for s, k, i, j in np.ndindex(*out.shape):
        at = (s, k, slice(i * stride, i * stride + height), slice(j * stride, j * stride + width))
        out[s, k, i, j] = x[at].max()
        share = (x[at] == x[at].max()).astype(float)
        if ties == "first":
            share = (np.arange(share.size) == x[at].argmax()).reshape(share.shape).astype(float)
        if ties == "split":
            share /= share.sum()
        if dout is not None:
            dx[at] += share * dout[s, k, i, j]
    return out if dout is None else (out, dx)


def numerical_gradient(f, x, dout, h=1e-5):
    """The notebooks' check: the gradient of sum(f(x) * dout) by central differences; x changes in place and back."""
    grad = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        old = x[place]
        x[place] = old + h
        above = np.array(f(x))
        x[place] = old - h
        below = np.array(f(x))
        x[place] = old
        grad[place] = np.sum((above - below) * dout) / (2 * h)
    return grad
