"""Opens a data set with LeRobot's own class and prints what it holds, as one line of JSON.

Runs in an environment that has LeRobot 0.4.4 (`LEROBOT_PYTHON`), not in ours:

    python tests/lerobot_reader.py ROOT            # read
    python tests/lerobot_reader.py --write ROOT    # write one of its own
"""

from __future__ import annotations

import json
import sys
import types

# a torchvision of another build than torch registers operators that are not there; none is used
sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")


def main(root: str) -> None:
    """Print names, rate, tasks, and of every row its action, state, task and mean shades."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore

    data = LeRobotDataset("trimvla/recorded", root=root, video_backend="pyav")
    cameras = data.meta.camera_keys
    rows = []
    for place in range(len(data)):
        row = data[place]
        rows.append(
            {
                "action": row["action"].tolist(),
                "state": row["observation.state"].tolist(),
                "task": row["task"],
                "episode": int(row["episode_index"]),
                "time": float(row["timestamp"]),
                "shades": [float(row[key][0].mean() * 255) for key in cameras],
            }
        )
    print(
        json.dumps(
            {
                "fps": data.fps,
                "episodes": data.num_episodes,
                "cameras": cameras,
                "action_names": data.meta.names["action"],
                "state_names": data.meta.names["observation.state"],
                "stats": sorted(data.meta.stats),
                "rows": rows,
            }
        )
    )


def write(root: str) -> None:
    """A data set of two episodes in one file, as LeRobot makes them: AV1 by default."""
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore

    image = {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    numbers = {"dtype": "float32", "shape": (2,), "names": ["shoulder.pos", "gripper.pos"]}
    features = {
        "observation.images.front": image,
        "observation.state": numbers,
        "action": numbers,
    }
    data = LeRobotDataset.create("trimvla/made", fps=10, features=features, root=root)
    for episode in range(2):
        for row in range(7):
            shade = 20 + 10 * row + 100 * episode
            data.add_frame(
                {
                    "observation.images.front": np.full((48, 64, 3), shade, np.uint8),
                    "observation.state": np.array([row, episode], np.float32),
                    "action": np.array([row + 0.5, episode], np.float32),
                    "task": f"task {episode}",
                }
            )
        data.save_episode()
    data.finalize()


if __name__ == "__main__":
    (write if sys.argv[1] == "--write" else main)(sys.argv[-1])
