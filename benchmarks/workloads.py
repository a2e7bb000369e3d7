"""The standard workloads by name: the features that the losses of a published configuration read.

A CPU takes fewer classes, a quick check takes almost nothing; `Workload.scale` says which, and so does every result.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    name: str
    classes: int
    real: int  # real images of a class
    ipc: int  # synthetic images of a class
    row: tuple[int, int, int]  # an image's feature map (C, H, W)
    width: int  # of an image's complexity features
    cpu_classes: int
    local: str = "channels"
    scale: str = "full"
    image: tuple[int, int, int] = (3, 32, 32)  # what its data set's images are

    @property
    def descriptors(self) -> tuple[int, int]:
        """D local descriptors at P positions."""
        channels, height, width = self.row
        return (channels * height, width) if self.local == "rows" else (channels, height * width)

    def at(self, scale: str) -> "Workload":
        if scale == "cpu" and self.cpu_classes < self.classes:
            return replace(self, classes=self.cpu_classes, scale=f"{self.cpu_classes} of {self.classes} classes")
        if scale == "quick":
            small = {"row": (4, 4, 4), "width": 16, "image": (3, 8, 8)}
            return replace(self, classes=2, real=6, ipc=3, **small, scale="quick")
        return self


MAP = (128, 4, 4)  # of a ConvNet-3 at 32x32, of a ConvNet-4 at 64x64
TINY = (3, 64, 64)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("c10-ipc10", 10, 256, 10, MAP, 512, cpu_classes=10),
        Workload("c10-ipc50", 10, 256, 50, MAP, 512, cpu_classes=10),
        Workload("c10-ipc1000", 10, 1024, 1000, MAP, 512, cpu_classes=2),
        Workload("c100-ipc50", 100, 256, 50, MAP, 512, cpu_classes=20),
        Workload("tiny-ipc10", 200, 256, 10, MAP, 2048, cpu_classes=20, image=TINY),
        Workload("tiny-ipc50", 200, 256, 50, MAP, 2048, cpu_classes=20, image=TINY),
        Workload("tiny-rows-ipc10", 200, 256, 10, (128, 8, 8), 2048, cpu_classes=4, local="rows", image=TINY),
    )
}
