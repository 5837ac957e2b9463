"""Every sentence of the tour, in English and in Chinese."""

from __future__ import annotations

__all__ = ["LANGUAGES", "TEXT", "say"]

LANGUAGES = ("en", "zh")

TEXT: dict[str, tuple[str, str]] = {
    "title": ("Four techniques, step by step", "四种技术，一步一步看"),
    "lead": (
        "A tour of one section of a thesis, “Common techniques”: dropout, batch normalisation, L2 regularisation and "
        "separable convolution. Every number on this page was computed by leanconv’s own layers when the page was made.",
        "本页逐一演示论文“常用技术”一节：神经元丢弃、批规范化、L2 正则化与可分离卷积。页面上的每个数字都由 leanconv 的网络层在生成本页时"
        "算出。",
    ),
    "contents": ("Contents", "目录"),
    "dropout": ("Dropout: some neurons stop", "神经元丢弃：一部分神经元停止工作"),
    "dropout_told": (
        "For each batch another random set of neurons stops working (figure 2-10). Stopped neurons pass nothing on, and the "
        "connections to and from them rest. In use every neuron works again.",
        "每批次样本随机让一部分神经元停止工作（图 2-10）。停止工作的神经元不向前传播，与它们相连的连接也不参与；推理时所有神经元恢复工作。",
    ),
    "ordinary": ("Ordinary: every neuron works", "普通网络：所有神经元都工作"),
    "stopped": ("With dropout, p = 0.5", "使用神经元丢弃，p = 0.5"),
    "next": ("Next batch", "下一批次"),
    "batch": ("Batch", "批次"),
    "working": ("neurons of the two hidden layers work", "个隐藏层神经元在工作"),
    "says": ("For the same image this network says", "对同一输入，该网络的输出为"),
    "says_all": ("With all neurons it says", "所有神经元都工作时的输出为"),
    "ensemble": ("An ensemble of {count:,} networks", "{count:,} 个子网络的集成"),
    "ensemble_told": (
        "A layer of {units} units has {count:,} sub-networks. All of them were run: the bars show what probability they give "
        "to the first class. Their normalised geometric mean and one single pass with all neurons (“weight scaling”) agree: "
        "over all inputs and classes they differ by {difference:.0e} at most. The arithmetic mean is another number.",
        "{units} 个神经元的一层共有 {count:,} 个子网络。这里全部运行了一遍：柱形为它们给第一个类别的概率。它们的归一化几何平均与所有神经元都"
        "工作时的一次前向传播（权重缩放）一致：对所有输入和类别，二者最多相差 {difference:.0e}。算术平均则是另一个数。",
    ),
    "ensemble_figure": ("What the sub-networks say", "各子网络的输出"),
    "probability": ("probability of the first class", "第一个类别的概率"),
    "share": ("share of the sub-networks", "子网络所占比例"),
    "arithmetic": ("arithmetic mean", "算术平均"),
    "geometric": ("geometric mean = weight scaling", "几何平均 = 权重缩放"),
    "batchnorm": ("Batch normalisation: table 2-1", "批规范化：表 2-1"),
    "batchnorm_told": (
        "Four samples with three features each, and what the algorithm makes of them, step by step. Means and variances are "
        "taken over the batch, feature by feature. Gamma starts as 1 and beta as 0; here they have been learned already.",
        "四个样本，每个三个特征，逐步列出算法的计算。均值与方差在批次上逐特征求得。γ 初始为 1、β 初始为 0，此处为学习之后的值。",
    ),
    "step": ("step", "步骤"),
    "feature": ("feature {n}", "特征 {n}"),
    "sample": ("x, sample {n}", "x，样本 {n}"),
    "step1": ("1. gamma", "1. 参数 γ"),
    "step1b": ("1. beta", "1. 参数 β"),
    "step2a": ("2. mean of the batch", "2. 批次均值 μ"),
    "step2b": ("2. variance of the batch", "2. 批次方差 σ²"),
    "step3a": ("3. normalised, sample {n}", "3. 规范化 x̂，样本 {n}"),
    "step3b": ("3. scaled and shifted, sample {n}", "3. 缩放平移 y，样本 {n}"),
    "restored": (
        "With gamma = sqrt(variance + eps) and beta = mean the layer restores the original scale: the greatest difference "
        "between y and x is {restored:.0e}.",
        "取 γ = sqrt(σ² + ε)、β = μ 时，该层恢复原始比例大小：y 与 x 的最大差为 {restored:.0e}。",
    ),
    "code": ("The code that computed this table", "计算此表的代码"),
    "depth": ("The deeper, the further from normal", "越深，偏离正态越远"),
    "depth_told": (
        "Twelve convolutions with ReLU on 64 real images, untrained, the same weights twice. Without batch normalisation what "
        "enters the activations shrinks with depth; with it mean and variance stay at 0 and 1 in every layer. The dashed "
        "line is N(0, 1): two moments are fixed, not the shape.",
        "十二层卷积与 ReLU，64 张真实图片，未经训练，两次使用相同权重。没有批规范化时，进入激活函数的值随深度缩小；有批规范化时，每层的均值与"
        "方差保持为 0 和 1。虚线为 N(0, 1)：固定的是两个矩，而不是分布的形状。",
    ),
    "without_bn": ("without batch normalisation", "没有批规范化"),
    "with_bn": ("with batch normalisation", "有批规范化"),
    "enters": ("what enters the activation", "进入激活函数的值"),
    "density": ("density", "密度"),
    "layer": ("layer {n}", "第 {n} 层"),
    "layers": ("layer", "层"),
    "deviation": ("standard deviation", "标准差"),
    "depth_figure": ("Deviation by depth", "标准差随深度的变化"),
    "l2": ("L2 regularisation: equations 2-10 to 2-13", "L2 正则化：式 2-10 至 2-13"),
    "l2_told": (
        "The cost C is the prediction loss C0 plus a penalty quadratic in the weights. The text does not define n; the three "
        "forms in use differ by a factor alone, and with matched strengths they are the same number. Computed for one small "
        "network on {n} images in float64.",
        "整体惩罚值 C 等于预测误差损失 C0 加上权重的二次惩罚项。原文没有定义 n；常见的三种形式只差一个因子，系数换算后数值相同。以下以一个小网络"
        "在 {n} 张图片上用 float64 计算。",
    ),
    "form": ("form", "形式"),
    "strength": ("lambda", "λ"),
    "c0": ("C0", "C0"),
    "penalty": ("penalty", "惩罚项"),
    "c": ("C = C0 + penalty", "C = C0 + 惩罚项"),
    "decay": ("as weight decay", "等价的权重衰减"),
    "weight_gap": ("weights: formula against autograd", "权重：公式与自动求导之差"),
    "bias_gap": ("biases: formula against autograd", "偏置：公式与自动求导之差"),
    "gradient_told": (
        "Equation 2-12 adds the decay times the weight to the gradient of each weight; equation 2-13 leaves biases alone. The "
        "last two columns hold the greatest difference between that formula and the gradient that autograd found.",
        "式 2-12 给每个权重的梯度加上衰减系数乘以该权重；式 2-13 对偏置项没有影响。最后两列是公式与自动求导所得梯度的最大差。",
    ),
    "shrinking": ("Weights keep shrinking", "权重不断变小"),
    "shrinking_figure": ("Norm of the weights", "权重的范数"),
    "shrinking_told": (
        "The same network from the same start, 150 steps of gradient descent, with lambda = {strength:g} (form lambda/2) and "
        "without.",
        "同一网络、同一初值，梯度下降 150 步，一次 λ = {strength:g}（形式 λ/2），一次没有 L2。",
    ),
    "steps": ("step", "步数"),
    "norm": ("norm", "范数"),
    "without": ("without L2", "没有 L2"),
    "with": ("with L2", "有 L2"),
    "separable": ("Separable convolution: figures 2-11 and 2-12", "可分离卷积：图 2-11 与图 2-12"),
    "separable_told": (
        "One real layer at work on one real image. Each of the {cin} channels is filtered by a kernel of its own; then each "
        "of the {cout} output maps is a weighted sum over the channels. Shown is output map {channel} with the six channels "
        "that weigh most in it. White is zero, vermilion above, blue below.",
        "一个真实的层处理一张真实图片。{cin} 个通道各由自己的卷积核处理；{cout} 个输出特征图各为通道的加权求和。图中为第 {channel} 号输出及其"
        "权重最大的六个通道。白色为零，橙红为正，蓝色为负。",
    ),
    "whose_small": (
        "The network is a small one, trained for 32 steps on the package’s images while this page was made.",
        "所用网络是生成本页时用软件包附带图片训练 32 步的小网络。",
    ),
    "whose_run": ("The network and the image are those of {whose}.", "网络与图片来自 {whose}。"),
    "image": ("image", "图片"),
    "channel": ("channel {n}", "通道 {n}"),
    "kernel": ("its kernel", "它的卷积核"),
    "filtered": ("filtered", "卷积之后"),
    "weight": ("weight {w:+.2f}", "权重 {w:+.2f}"),
    "sum": ("weighted sum over all {cin} channels: one map", "{cin} 个通道的加权求和：单特征图"),
    "sum_told": (
        "The weighted sum, computed by hand, and what the layer gave differ by {difference:.0e} of the largest value.",
        "手工计算的加权求和与该层的输出相差为最大值的 {difference:.0e}。",
    ),
    "both_counts": (
        "As a standard convolution this layer would hold {standard:,} parameters; it holds {separable:,}.",
        "若为标准卷积，该层有 {standard:,} 个参数；现在为 {separable:,} 个。",
    ),
    "calculator": ("Calculator", "计算器"),
    "calculator_told": (
        "Parameters without bias; K is the area of the kernel. Standard: Cin K Cout. Separable: Cin K + Cin Cout.",
        "参数量不含偏置；K 为卷积核面积。标准卷积：Cin·K·Cout。可分离卷积：Cin·K + Cin·Cout。",
    ),
    "cin": ("input channels Cin", "输入通道数 Cin"),
    "cout": ("output channels Cout", "输出通道数 Cout"),
    "side": ("side of the kernel", "卷积核边长"),
    "standard": ("standard", "标准卷积"),
    "separable_short": ("separable", "可分离卷积"),
    "wins": ("the separable one has {times} times fewer", "可分离卷积的参数量是标准卷积的 1/{times}"),
    "loses": ("here the separable one has more", "此时可分离卷积的参数更多"),
    "bad": ("whole numbers from 1 to 4096, please", "请输入 1 至 4096 的整数"),
    "ladder": ("From fully connected to separable", "从全连接到可分离卷积"),
    "ladder_told": (
        "Four ways from 3 to 16 maps of 32 x 32 with 3 x 3 kernels. Sharing a kernel over all places saves parameters, not "
        "computation; separating saves both.",
        "从 3 个到 16 个 32×32 特征图的四种做法（3×3 卷积核）。共享卷积核减少参数而不减少计算；可分离卷积两者都减少。",
    ),
    "connected": ("fully connected", "全连接"),
    "unshared": ("local, kernels not shared", "局部连接，不共享卷积核"),
    "params": ("parameters", "参数量"),
    "macs": ("multiply-adds", "乘加次数"),
    "growth_figure": ("Parameters of a 3 x 3 layer by its channels", "3×3 层的参数量随通道数的变化"),
    "channels": ("channels in and out", "输入与输出通道数"),
    "losing": ("Where separating loses", "何时得不偿失"),
    "losing_told": (
        "With a kernel of one place, or with very few output maps, the separable form has more parameters.",
        "卷积核面积为 1，或输出通道极少时，可分离形式的参数反而更多。",
    ),
    "foot": (
        "Made by `leanconv tour`. Equations, table and figures were lost in our copy of the text and are restored from the "
        "works that it cites.",
        "由 `leanconv tour` 生成。所用文本中公式、表与图已缺失，此处依据其引用的文献复原。",
    ),
}


def say(key: str, language: str, **values: object) -> str:
    """A sentence with its values in place.

    Args:
        key: of :data:`TEXT`.
        language: ``en`` or ``zh``.
        **values: that the sentence names.
    """
    return TEXT[key][LANGUAGES.index(language)].format(**values)
