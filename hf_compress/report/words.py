"""The texts of the experiment document in English and Chinese: one template, two lists of words."""

from __future__ import annotations

from ..errors import CompressionError


ENGLISH = {
    "colon": ": ",
    "comma": ", ",
    "semicolon": "; ",
    "none": "none",
    "more": "{items} and {n} more",
    "run_of": "{recipe} (seed {seed})",
    "hours": "{h} h {m:02d} min",
    "minutes": "{m} min {s:02d} s",
    "seconds": "{s:.1f} s",
    # names
    "technique.baseline": "dense model",
    "technique.finetune": "fine-tuning",
    "technique.prune": "pruning",
    "technique.factorize": "low-rank factorization",
    "technique.distill": "knowledge distillation",
    "technique.quantize": "quantization",
    "technique.": "no technique",
    "operation.load": "load",
    "operation.data": "prepare data",
    "operation.surgery": "change the model",
    "operation.train": "train",
    "operation.calibrate": "calibrate",
    "operation.save": "save",
    "operation.evaluate": "evaluate",
    "operation.measure": "measure",
    "operation.shared": "take a shared stage",
    "operation.push": "push to the Hub",
    "operation.run": "run",
    "operation.other": "other",
    "operation.nothing": "nothing left to make; report written",
    "kind.reading": "reading",
    "kind.coding": "coding",
    "kind.running": "running",
    "kind.writing": "writing",
    "kind.other": "other",
    "status.done": "done",
    "status.failed": "failed",
    "status.interrupted": "interrupted",
    "status.shared": "made by {maker}",
    "task.sample": "{task} (sample)",
    "task.part": "{task} ({n} evaluation examples)",
    "elsewhere": "a run that is not in this document",
    # head
    "title": "Experiment: compressing {models} on {tasks}",
    "summary": "Finished runs: {runs}, of {recipes} recipes, with the seeds {seeds}. Runs without results: "
    "{problems}. Machine time: {machine}. Time that people noted: {human}.",
    "short.metric": "Best {metric} after compression: {value} ({delta} against the dense model), {run}: {steps}",
    "short.size": "Smallest: {value} of the dense model, {metric} {delta}, {run}: {steps}",
    "short.speed": "Fastest: {value} of the dense model's latency in PyTorch fp32, {metric} {delta}, {run}: {steps}",
    # 1
    "setting": "Setting",
    "columns.setting": "task|model|steps|recipe|seeds",
    "setting.note": "A recipe is a model, a task and an ordered list of steps. The dense model just before the first "
    "compressing step is the baseline of all comparisons; each step starts from the model saved by the one before it.",
    # 2
    "environment": "Environment",
    "environment.unknown": "The results say nothing of the environment.",
    "environment.differs": "**The runs were not all made in the same environment.** Accuracies may differ in their "
    "last digits; absolute latencies and seconds of such runs must not be compared with each other.",
    "environment.cpu": "CPU",
    "environment.instruction_sets": "instruction sets",
    "environment.usable_cores": "cores",
    "environment.threads": "threads",
    "environment.memory_bytes": "memory",
    "environment.os": "operating system",
    "environment.python": "Python",
    "environment.versions": "packages",
    # 3
    "data": "Data",
    "columns.data": "task|dataset|configuration|evaluation split|training examples|evaluation examples|source",
    "data.all": "all",
    "data.hub": "the Hub's, or a local copy under its name",
    "data.sample": "the sample in the package",
    "data.local": "local copy",
    "data.holdout": "{share:.0%} of the training split, chosen by a hash of the index, are held out: nothing is "
    "trained on them, and they are watched after every epoch. Examples to calibrate with come from the rest of that "
    "split. The steps used the evaluation split only for the figures reported here.",
    # 4
    "process": "Process",
    "process.note": "From the journals of the runs; times are UTC, seconds are wall time and hold for the recorded "
    "operations, peak memory is that of the process.",
    "columns.process": "recipe|runs|begun|ended|interrupted|failed|shared stages|seconds|peak memory",
    "process.long": "{n} runs: each one's journal is `journal.jsonl` in its folder.",
    "columns.timeline": "attempt|begun|stage|operation|times|seconds|peak memory|status",
    "journal.missing": "{run}: there is no journal",
    "journal.empty": "{run}: the journal has no whole line",
    "journal.unreadable": "{run}: the journal cannot be read ({reason})",
    # 5
    "results": "Results",
    "columns.comparison": "recipe|stage|steps|seeds|metric|Δ|params|MACs|size|latency p50 / p90|vs PyTorch fp32|vs "
    "same runtime|vs its bf16|seconds|to here",
    "results.note": "Mean ± standard deviation over the seeds. Δ and percentages are against the dense model. “vs …” "
    "divides the dense model's median latency by this one's, both timed in turn in one process: the dense model in "
    "PyTorch fp32, in the same runtime at full precision, and there in bf16. “seconds” is the machine time of the "
    "stage, “to here” of it and all before it.",
    "results.final": "The results of the recipes",
    "results.stages": "Stage by stage",
    "results.long": "{n} stages: they are in `comparison.md` and `comparison.csv`.",
    "results.steps": "What each technique did",
    "results.steps.note": "Against the stage just before it, not against the dense model: mean, and in brackets the "
    "lowest and highest where they differ. Stages that runs share count once. A student that does not come from the "
    "stage before it, which is its teacher, is left out.",
    "columns.steps": "technique|task|model|metric|stages|change of the metric|params|MACs|size",
    # 6
    "time": "Time by technique",
    "time.note": "Machine seconds by operation; minutes of people by kind, as they noted them with `hf-compress "
    "journal add`. Stages that runs share count once.",
    "columns.time": "technique|stages|machine, s|people, min",
    "time.total": "together",
    "time.sharing": "All stages together took {together}. Each run by itself would have taken {alone} in sum: sharing "
    "stages saved {saved} ({share:.0%}).",
    "time.unshared": "All stages together took {together}; no stage was shared between runs.",
    "time.nobody": "Nobody noted time of their own. `hf-compress journal add RUN --minutes 40 --kind reading "
    '--technique pruning --note "…"` does, also afterwards.',
    # 7
    "frontier": "The frontier",
    "frontier.note": "Stages that no other beats both in the metric and in the cost named (means over the seeds), "
    "from the cheapest on, with what it took to get there: machine time of the stage and those before it, and the "
    "time that people noted for its techniques, in all runs. A difference below the spread over the seeds decides "
    "nothing.",
    "frontier.group": "{task}, dense model of {params} params and {macs} MACs",
    "frontier.latency": "Latency, relative to the dense model in PyTorch fp32 timed beside it",
    "frontier.size": "Size on disk, relative to the dense model",
    "frontier.macs": "MACs, relative to the dense model",
    "columns.frontier": "recipe|stage|steps|cost|metric|machine time|people, min",
    "frontier.empty": "There are no two stages to compare.",
    # 8
    "problems": "Warnings and failures",
    "problems.warnings": "Warnings of the runs",
    "problems.runs": "Runs without results",
    "problems.errors": "Errors and interruptions in the journals",
    "problems.none": "None.",
    "problems.more": "{n} more",
    "warning.seeds": "Fewer than three seeds, so the spread is not known: {recipes}",
    "warning.twice": "More than one run of the same recipe and seed; their spread is not that over seeds: {recipes}",
    "warning.environment": "The environment differs between the runs; see section 2.",
    "warning.stale": "{run}: the results shown are those of an earlier run; the last one failed: {reason}",
    "error.failed": "{run}, {stage}, {operation}: {reason}",
    "error.interrupted": "{run}: interruptions: {n}; what was finished before is kept",
    # 9
    "reproduce": "Reproduce",
    "reproduce.note": "The recipes as they were resolved, without the paths of this machine. Steps give the same "
    "models on the same versions and kind of CPU; latencies are those of the machine.",
    "reproduce.paths": "`path/to/…` stands for a local folder: give yours.",
    "reproduce.recipe": "Recipe {name}, as `{file}.yaml`",
    "reproduce.study": "Study {name}, as `{file}.yaml`",
    "reproduce.long": "{n} more recipes are in the folders of their runs, each as `recipe.yaml`.",
    "reproduce.report": "This document",
    # 10
    "evaluation": "Personal evaluation",
    "evaluation.note": "To be filled in by whoever did the experiment.",
    "evaluation.machine": "Machine: {time} (stages made: {n})",
    "evaluation.people": "People: {minutes:g} min ({kinds})",
    "evaluation.nobody": "People: no time noted",
    "evaluation.effect": "{metric} on {task}, {model}: {change} against the stage before",
    "evaluation.note_head": "{date}, {minutes:g} min, {kind}",
    "evaluation.whole": "As a whole",
    "answer": "Answer:",
    "question.expected": "What did I expect of it before (accuracy, size, speed, effort), and why?",
    "question.happened": "What happened? Where do the tables confirm the expectation, where not?",
    "question.learning": "How long did it take me to understand it, how long to get it to run, and what took longest?",
    "question.surprises": "What failed or surprised me, and what was the cause?",
    "question.use": "Would I use it: for which model, on which hardware, before or after which other technique?",
    "question.choice": "Which combination do I recommend, and for which requirement (accuracy, size, latency, time)?",
    "question.limits": "What do these results not show (other tasks, other hardware, more seeds)?",
    "question.again": "What would I do differently next time?",
}

CHINESE = {
    "colon": "：",
    "comma": "、",
    "semicolon": "；",
    "none": "无",
    "more": "{items} 等，另有 {n} 项",
    "run_of": "{recipe}（种子 {seed}）",
    "hours": "{h} 小时 {m:02d} 分",
    "minutes": "{m} 分 {s:02d} 秒",
    "seconds": "{s:.1f} 秒",
    "technique.baseline": "稠密模型",
    "technique.finetune": "微调",
    "technique.prune": "剪枝",
    "technique.factorize": "低秩分解",
    "technique.distill": "知识蒸馏",
    "technique.quantize": "量化",
    "technique.": "未指明方法",
    "operation.load": "加载模型",
    "operation.data": "准备数据",
    "operation.surgery": "修改模型结构",
    "operation.train": "训练",
    "operation.calibrate": "校准",
    "operation.save": "保存",
    "operation.evaluate": "评测",
    "operation.measure": "测量开销与延迟",
    "operation.shared": "复用共享阶段",
    "operation.push": "上传到 Hub",
    "operation.run": "整个运行",
    "operation.other": "其他",
    "operation.nothing": "各阶段均已完成，仅重新生成报告",
    "kind.reading": "阅读",
    "kind.coding": "编码",
    "kind.running": "跑实验",
    "kind.writing": "写作",
    "kind.other": "其他",
    "status.done": "完成",
    "status.failed": "失败",
    "status.interrupted": "中断",
    "status.shared": "由 {maker} 生成",
    "task.sample": "{task}（样本）",
    "task.part": "{task}（{n} 个评测样本）",
    "elsewhere": "本文档未收录的运行",
    "title": "{models} 在 {tasks} 上的模型压缩实验",
    "summary": "共完成 {runs} 次运行，涉及 {recipes} 个配方（recipe），随机种子：{seeds}；"
    "没有结果的运行：{problems} 次。机器总用时：{machine}。人工用时（自行记录）：{human}。",
    "short.metric": "压缩后 {metric} 最高：{value}（相对稠密模型 {delta}），{run}：{steps}",
    "short.size": "体积最小：稠密模型的 {value}，{metric} {delta}，{run}：{steps}",
    "short.speed": "速度最快：延迟为稠密模型（PyTorch fp32）的 {value}，{metric} {delta}，{run}：{steps}",
    "setting": "实验设置",
    "columns.setting": "任务|模型|步骤|配方|种子",
    "setting.note": "一个配方由模型、任务和有序的步骤组成。第一个压缩步骤之前的稠密模型是所有对比的基线；"
    "每一步都从上一步保存到磁盘的模型开始。",
    "environment": "实验环境",
    "environment.unknown": "结果文件中没有记录环境信息。",
    "environment.differs": "**各次运行的环境不完全相同。**准确率的末几位可能因此不同；"
    "不同环境下的绝对延迟和用时不能直接比较。",
    "environment.cpu": "CPU",
    "environment.instruction_sets": "指令集",
    "environment.usable_cores": "可用核数",
    "environment.threads": "线程数",
    "environment.memory_bytes": "内存",
    "environment.os": "操作系统",
    "environment.python": "Python",
    "environment.versions": "软件包",
    "data": "数据",
    "columns.data": "任务|数据集|配置|评测集|训练样本数|评测样本数|来源",
    "data.all": "全部",
    "data.hub": "Hub（或同名的本地副本）",
    "data.sample": "软件包自带的样本",
    "data.local": "本地副本",
    "data.holdout": "训练集的 {share:.0%} 按样本序号的哈希值划为留出集，不参与训练，只在每个 epoch 之后用来观察；"
    "校准样本取自训练集的其余部分；各步骤只用评测集得到本文报告的数值。",
    "process": "实验过程",
    "process.note": "根据各次运行的日志（journal）整理。时间为 UTC；用时为所记录操作的实际耗时（wall time，秒），"
    "峰值内存为进程的峰值。",
    "columns.process": "配方|运行次数|开始|结束|中断|失败|共享阶段|用时（秒）|峰值内存",
    "process.long": "共 {n} 次运行，每次运行的详细日志见其目录下的 `journal.jsonl`。",
    "columns.timeline": "第几次启动|开始时间|阶段|操作|次数|用时（秒）|峰值内存|状态",
    "journal.missing": "{run}：没有日志",
    "journal.empty": "{run}：日志中没有完整的记录",
    "journal.unreadable": "{run}：日志无法读取（{reason}）",
    "results": "实验结果",
    "columns.comparison": "配方|阶段|步骤|种子数|指标|Δ|参数量|MACs|体积|延迟 p50 / p90|对比 PyTorch fp32|"
    "对比同一运行时|对比其 bf16|用时（秒）|累计（秒）",
    "results.note": "数值为各随机种子的均值 ± 标准差。Δ 和百分比均相对稠密模型。“对比……”三列是稠密模型的延迟中位数除以"
    "本模型的延迟中位数（加速比），两者在同一进程中交替计时：稠密模型分别运行于 PyTorch fp32、同一运行时的全精度、"
    "同一运行时的 bf16。“用时”是该阶段的机器用时，“累计”包含它之前的所有阶段。",
    "results.final": "各配方的最终结果",
    "results.stages": "各阶段的结果",
    "results.long": "共 {n} 个阶段，见 `comparison.md` 和 `comparison.csv`。",
    "results.steps": "每种方法单步的效果",
    "results.steps.note": "与紧邻的上一阶段相比，而不是与稠密模型相比：给出均值，数值不一致时括号内为最低值和最高值。"
    "多次运行共享的阶段只计一次。若上一阶段是教师模型，学生模型并非由它得到，不计入此表。",
    "columns.steps": "方法|任务|模型|指标|阶段数|指标变化|参数量|MACs|体积",
    "time": "各方法的用时",
    "time.note": "机器用时按操作统计（秒）；人工用时按类型统计（分钟），来自 `hf-compress journal add` 的记录。"
    "多次运行共享的阶段只计一次。",
    "columns.time": "方法|阶段数|机器合计（秒）|人工合计（分钟）",
    "time.total": "合计",
    "time.sharing": "全部阶段共用时 {together}；若每次运行都单独进行，总和为 {alone}。共享阶段节省了 {saved}"
    "（{share:.0%}）。",
    "time.unshared": "全部阶段共用时 {together}；各次运行之间没有共享阶段。",
    "time.nobody": "没有人工用时的记录。可以随时补记：`hf-compress journal add RUN --minutes 40 --kind reading "
    '--technique pruning --note "…"`。',
    "frontier": "帕累托前沿",
    "frontier.note": "下列阶段在指标和相应的开销上不被任何其他阶段同时超过（按各种子的均值），从开销最小的开始列出，"
    "并给出得到它的代价：该阶段及之前各阶段的机器用时，以及为其所用方法记录的人工用时（所有运行合计）。"
    "小于种子间波动的差异不足以说明优劣。",
    "frontier.group": "{task}，稠密模型参数量 {params}、MACs {macs}",
    "frontier.latency": "延迟（相对于同时计时的 PyTorch fp32 稠密模型）",
    "frontier.size": "磁盘体积（相对于稠密模型）",
    "frontier.macs": "MACs（相对于稠密模型）",
    "columns.frontier": "配方|阶段|步骤|开销|指标|机器用时|人工（分钟）",
    "frontier.empty": "没有可以相互比较的阶段。",
    "problems": "警告与失败",
    "problems.warnings": "运行中的警告",
    "problems.runs": "没有结果的运行",
    "problems.errors": "日志中的错误与中断",
    "problems.none": "无。",
    "problems.more": "另有 {n} 条",
    "warning.seeds": "随机种子少于三个，无法可靠估计波动：{recipes}",
    "warning.twice": "同一配方、同一种子有多次运行，其标准差不是种子之间的波动：{recipes}",
    "warning.environment": "各次运行的环境不一致，见第 2 节。",
    "warning.stale": "{run}：所示结果来自较早的一次运行，最近一次运行失败：{reason}",
    "error.failed": "{run}，{stage}，{operation}：{reason}",
    "error.interrupted": "{run}：中断 {n} 次，此前完成的部分均保留",
    "reproduce": "复现方法",
    "reproduce.note": "以下是解析后的完整配方，已去掉本机路径。在相同的软件版本和同类 CPU 上可得到相同的模型；"
    "延迟取决于具体机器。",
    "reproduce.paths": "`path/to/…` 表示本地目录，请换成自己的路径。",
    "reproduce.recipe": "配方 {name}，保存为 `{file}.yaml`",
    "reproduce.study": "研究（study）{name}，保存为 `{file}.yaml`",
    "reproduce.long": "其余 {n} 个配方见各自运行目录下的 `recipe.yaml`。",
    "reproduce.report": "生成本文档",
    "evaluation": "个人评价",
    "evaluation.note": "由完成实验的人填写。",
    "evaluation.machine": "机器用时：{time}，{n} 个阶段",
    "evaluation.people": "人工用时：{minutes:g} 分钟（{kinds}）",
    "evaluation.nobody": "人工用时：没有记录",
    "evaluation.effect": "{task}，{model} 的 {metric}：与上一阶段相比 {change}",
    "evaluation.note_head": "{date}，{minutes:g} 分钟，{kind}",
    "evaluation.whole": "总体评价",
    "answer": "答：",
    "question.expected": "使用之前，我对它的预期是什么（精度、体积、速度、工作量）？依据是什么？",
    "question.happened": "实际结果如何？上面的表格在哪些方面符合预期，哪些方面不符合？",
    "question.learning": "理解它花了多长时间？跑通它花了多长时间？最费时间的是什么？",
    "question.surprises": "遇到了哪些失败或意料之外的情况？原因是什么？",
    "question.use": "我会使用它吗？适合什么模型、什么硬件？应放在哪种方法之前或之后？",
    "question.choice": "我推荐哪种组合？分别针对什么需求（精度、体积、延迟、制作时间）？",
    "question.limits": "这些结果不能说明什么（其他任务、其他硬件、更多随机种子）？",
    "question.again": "如果重做一次，我会有哪些不同的做法？",
}

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


class Words:
    """The texts in one language; called with a key and what its placeholders stand for.

    Args:
        lang (`str`): "en" or "zh".

    Raises:
        `CompressionError`: for another language.
    """

    def __init__(self, lang: str):
        if lang not in LANGUAGES:
            raise CompressionError(f"lang: got {lang!r}; allowed are {', '.join(LANGUAGES)}.")
        self.lang = lang
        self.texts = LANGUAGES[lang]

    def __call__(self, key: str, **values) -> str:
        return self.texts[key].format(**values)

    def columns(self, key: str) -> list[str]:
        """The header of a table."""
        return self.texts[f"columns.{key}"].split("|")

    def name(self, kind: str, name: str) -> str:
        """What a technique, an operation or a kind of time is called; a name that is unknown is left as it is."""
        return self.texts.get(f"{kind}.{name}", name)

    def duration(self, seconds: float) -> str:
        whole = round(seconds)
        if whole >= 3570:
            hours, minutes = divmod(round(whole / 60), 60)
            return self("hours", h=hours, m=minutes)
        return self("minutes", m=whole // 60, s=whole % 60) if whole >= 60 else self("seconds", s=seconds)

    def some(self, items: list[str], at_most: int = 6) -> str:
        """A list in a sentence, of which only the first few are named."""
        named = self("comma").join(items[:at_most])
        return self("more", items=named, n=len(items) - at_most) if len(items) > at_most else named
