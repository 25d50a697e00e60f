// cooperative_groups.h of the emulator: the grid and the block, no tiles.
#pragma once

namespace cooperative_groups {
struct thread_block {
  static void sync(SIMT_HERE) { ::simt::barrier({"block.sync()", file, line, -line}, false); }
  static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
  static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
};

struct grid_group {
  void sync(SIMT_HERE) const { ::simt::grid_barrier({"grid.sync()", file, line, 0}); }
  bool is_valid() const { return true; }
  unsigned long long num_blocks() const { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  unsigned long long block_rank() const {
    return blockIdx.x + 1ull * gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
  }
  unsigned long long num_threads() const { return num_blocks() * thread_block::num_threads(); }
  unsigned long long size() const { return num_threads(); }
  unsigned long long thread_rank() const {
    return block_rank() * thread_block::num_threads() + thread_block::thread_rank();
  }
};

inline grid_group this_grid() { return {}; }
inline thread_block this_thread_block() { return {}; }
template <class Group> void sync(const Group& group, SIMT_HERE) { group.sync(file, line); }
}  // namespace cooperative_groups
