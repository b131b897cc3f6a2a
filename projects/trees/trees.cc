// ONNX Runtime's operator TreeEnsembleRegressor for batches of rows.
//
// The file is compiled once per instruction set with -DLEVEL=<namespace>, which yields the
// kernels, and once without LEVEL, which yields the operator that selects a kernel for the CPU.
//
// A row's numbers are first replaced by ranks among the thresholds of their column (8 or 16
// bits), so that comparisons are exact and 32 to 64 rows fit into a vector. A block of rows then
// passes all trees:
// - small trees from their leaves to the root: a node selects, per row, the leaf of its left or
//   right child (one comparison and one selection per node for all rows of a vector);
// - symmetric trees by level: each comparison appends a bit to the number of the leaf;
// - large trees by descending from the root without branches.
// Each row adds its leaves in the order of the trees, in the type of the rows, like ONNX Runtime
// on one thread, so the sums are equal bit by bit.

#include <cstddef>
#include <cstdint>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

struct Tree {
  enum Kind : uint32_t { kSelect, kSymmetric, kDescend } kind;
  uint32_t node;     // the first entry in the arrays of nodes
  uint32_t splits;   // the number of inner nodes, or of levels of a symmetric tree
  uint32_t leaves;
  uint32_t program;  // the first entry in `selections`
  uint32_t values;   // the first entry in `values`: leaves per target
  uint32_t target;   // the first entry in `targets`
  uint32_t targets;
};

struct Selection {  // of a small or symmetric tree
  uint16_t column, cut, left, right;
};

struct Step {  // of a large tree: right is left + 1; a leaf is its own left child
  uint16_t column, cut;
  uint32_t left;
};

template <class T>
struct Node {  // for few rows, with the original threshold
  T cut;             // of a leaf: its value if the tree has one target
  uint32_t feature;  // the highest bit: a missing value goes left
  uint32_t left;  // of a leaf: itself
};

struct Column {
  uint32_t feature;
  uint32_t cuts;  // the number of thresholds
  uint32_t first;  // the first entry in `cuts`, padded to `width` with infinity
  uint32_t width;  // a power of two, minus 1
  uint32_t missing;  // the rank of a missing value
};

template <class T>
struct Ensemble {
  const Tree* tree;
  size_t trees;
  const Selection* selection;
  const Step* step;
  const Node<T>* node;
  const uint32_t* leaf;  // the number of the leaf, for each node
  const T* value;
  const uint32_t* target;
  const Column* column;
  size_t columns;
  const T* cut;
  const T* base;
  size_t targets;
  size_t features;
  uint32_t most_leaves;  // of a small tree
  bool is_wide;    // ranks have 16 bits
  bool is_ranked;  // false if a column has more thresholds than 16 bits can count
};

constexpr size_t kRows = 128;   // rows per block
constexpr size_t kFewRows = 8;  // from this number on, a block is faster than rows one by one
constexpr uint32_t kMissingLeft = 1u << 31;

#ifdef LEVEL

namespace LEVEL {
namespace {

#if defined(__AVX512BW__)
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif

template <class Number>
struct Vector {  // a register of ranks, or of numbers of leaves
  typedef Number Type __attribute__((vector_size(VECTOR_BYTES), may_alias));
};

// Ranks are signed, because AVX2 compares only signed numbers.
template <class Rank>
Rank signed_rank(uint32_t rank) {
  return Rank(rank - (1u << (8 * sizeof(Rank) - 1)));
}

template <class T, class Rank>
void rank_rows(const Ensemble<T>& trees, const T* rows, size_t count, size_t padded, Rank* ranks) {
  T numbers[kRows];
  int32_t positions[kRows];
  for (size_t index = 0; index < trees.columns; ++index) {
    const Column column = trees.column[index];
    const T* cut = trees.cut + column.first;
    for (size_t row = 0; row < count; ++row)
      numbers[row] = rows[row * trees.features + column.feature];
    for (size_t row = count; row < padded; ++row) numbers[row] = 0;
    for (size_t row = 0; row < padded; ++row) positions[row] = 0;
    // A binary search of all rows together: a rank is the number of smaller thresholds.
    for (int32_t half = int32_t(column.width + 1) / 2; half; half /= 2)
      for (size_t row = 0; row < padded; ++row)
        positions[row] += cut[positions[row] + half - 1] < numbers[row] ? half : 0;
    Rank* rank = ranks + index * kRows;
    for (size_t row = 0; row < padded; ++row)
      rank[row] = signed_rank<Rank>(numbers[row] == numbers[row] ? uint32_t(positions[row])
                                                                 : column.missing);
  }
}

#ifdef __AVX512F__
// Look up the values of a vector of leaves in registers, because a gather takes four times as long.
struct Doubles {
  static constexpr size_t kLanes = 8;
  __m512d values;
  static Doubles load(const double* from) { return {_mm512_loadu_pd(from)}; }
  void add_to(double* sum) const { _mm512_storeu_pd(sum, _mm512_loadu_pd(sum) + values); }
  static __m512i ids(const uint8_t* from) {
    return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static __m512i ids(const uint16_t* from) {
    return _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Doubles pick(Doubles low, __m512i ids, Doubles high) {
    return {_mm512_permutex2var_pd(low.values, ids, high.values)};
  }
  static Doubles choose(__m512i ids, int bit, Doubles low, Doubles high) {
    const __mmask8 mask = _mm512_test_epi64_mask(ids, _mm512_set1_epi64(bit));
    return {_mm512_mask_blend_pd(mask, low.values, high.values)};
  }
};
struct Floats {
  static constexpr size_t kLanes = 16;
  __m512 values;
  static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  void add_to(float* sum) const { _mm512_storeu_ps(sum, _mm512_loadu_ps(sum) + values); }
  static __m512i ids(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static __m512i ids(const uint16_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Floats pick(Floats low, __m512i ids, Floats high) {
    return {_mm512_permutex2var_ps(low.values, ids, high.values)};
  }
  static Floats choose(__m512i ids, int bit, Floats low, Floats high) {
    const __mmask16 mask = _mm512_test_epi32_mask(ids, _mm512_set1_epi32(bit));
    return {_mm512_mask_blend_ps(mask, low.values, high.values)};
  }
};

template <class Lanes, size_t kTables, class T, class Number>
void add_from_registers(const T* value, const Number* ids, size_t rows, T* sum) {
  constexpr size_t kLanes = Lanes::kLanes;
  Lanes table[kTables];
  for (size_t index = 0; index < kTables; ++index) table[index] = Lanes::load(value + index * kLanes);
  for (size_t row = 0; row < rows; row += kLanes) {
    const __m512i id = Lanes::ids(ids + row);
    Lanes found[kTables / 2];
    for (size_t index = 0; index < kTables / 2; ++index)
      found[index] = Lanes::pick(table[2 * index], id, table[2 * index + 1]);
    for (size_t left = kTables / 4, bit = 2 * kLanes; left; left /= 2, bit *= 2)
      for (size_t index = 0; index < left; ++index)
        found[index] = Lanes::choose(id, int(bit), found[2 * index], found[2 * index + 1]);
    found[0].add_to(sum + row);
  }
}

template <class Number, class T>
bool add_from_registers(const T* value, uint32_t leaves, const Number* ids, size_t rows, T* sum) {
  using Lanes = std::conditional_t<sizeof(T) == 8, Doubles, Floats>;
  if constexpr (sizeof(Number) > 2) {
    return false;
  } else {
    if (leaves <= 2 * Lanes::kLanes) {
      add_from_registers<Lanes, 2>(value, ids, rows, sum);
    } else if (leaves <= 4 * Lanes::kLanes) {
      add_from_registers<Lanes, 4>(value, ids, rows, sum);
    } else if (leaves <= 8 * Lanes::kLanes) {
      add_from_registers<Lanes, 8>(value, ids, rows, sum);
    } else {
      return false;
    }
    return true;
  }
}
#else
template <class Number, class T>
bool add_from_registers(const T*, uint32_t, const Number*, size_t, T*) {
  return false;
}
#endif

template <class T, class Number>
void add_leaves(const Ensemble<T>& trees, const Tree& tree, const Number* __restrict ids, size_t rows,
                T* __restrict sums) {
  const T* __restrict value = trees.value + tree.values;
  for (uint32_t index = 0; index < tree.targets; ++index, value += tree.leaves) {
    T* __restrict sum = sums + trees.target[tree.target + index] * kRows;
    if (!add_from_registers(value, tree.leaves, ids, rows, sum))
      for (size_t row = 0; row < rows; ++row) sum[row] += value[ids[row]];
  }
}

template <class Rank>
using Id = std::make_unsigned_t<Rank>;

template <class T, class Rank>
void select(const Ensemble<T>& trees, const Tree& tree, const Rank* ranks, size_t rows, Rank* slots,
            T* sums) {
  const Selection* selection = trees.selection + tree.program;
  Rank* out = slots + trees.most_leaves * kRows;
  for (uint32_t index = 0; index < tree.splits; ++index, ++selection, out += kRows) {
    const Rank* rank = ranks + selection->column * kRows;
    const Rank* left = slots + selection->left * kRows;
    const Rank* right = slots + selection->right * kRows;
    using V = typename Vector<Rank>::Type;
    const V cut = signed_rank<Rank>(selection->cut) - V{};
    for (size_t row = 0; row < rows; row += sizeof(V) / sizeof(Rank))
      *(V*)(out + row) =
          *(const V*)(rank + row) > cut ? *(const V*)(right + row) : *(const V*)(left + row);
  }
  add_leaves(trees, tree, reinterpret_cast<Id<Rank>*>(out - kRows), rows, sums);
}

template <class T, class Rank>
void select_levels(const Ensemble<T>& trees, const Tree& tree, const Rank* ranks, size_t rows,
                   T* sums) {
  const Selection* selection = trees.selection + tree.program;
  alignas(64) Id<Rank> ids[kRows] = {};
  for (uint32_t index = 0; index < tree.splits; ++index, ++selection) {
    const Rank* rank = ranks + selection->column * kRows;
    using V = typename Vector<Rank>::Type;
    const V cut = signed_rank<Rank>(selection->cut) - V{};
    using Ids = typename Vector<Id<Rank>>::Type;
    for (size_t row = 0; row < rows; row += sizeof(V) / sizeof(Rank)) {
      Ids& id = *(Ids*)(ids + row);
      id = id + id - (Ids)(*(const V*)(rank + row) > cut);
    }
  }
  add_leaves(trees, tree, ids, rows, sums);
}

template <class T, class Rank>
void descend(const Ensemble<T>& trees, const Tree& tree, const Rank* ranks, size_t rows, T* sums) {
  const Step* step = trees.step + tree.node;
  uint32_t ids[kRows];
  for (size_t first = 0; first < rows; first += 16) {
    uint32_t position[16] = {};
    for (uint32_t moved = 1; moved;) {
      moved = 0;
#pragma clang loop vectorize(disable) unroll(full)  // Gathers take longer.
      for (size_t row = 0; row < 16; ++row) {
        const Step at = step[position[row]];
        const uint32_t next = at.left + (ranks[at.column * kRows + first + row] > signed_rank<Rank>(at.cut));
        moved |= next ^ position[row];
        position[row] = next;
      }
    }
    for (size_t row = 0; row < 16; ++row)
      ids[first + row] = trees.leaf[tree.node + position[row]];
  }
  add_leaves(trees, tree, ids, rows, sums);
}

template <class T, class Rank>
void compute_block(const Ensemble<T>& trees, const T* rows, size_t count, float* out, char* memory) {
  T* sums = reinterpret_cast<T*>(memory);
  Rank* slots = reinterpret_cast<Rank*>(sums + trees.targets * kRows);
  Rank* ranks = slots + trees.most_leaves * 2 * kRows;
  for (size_t index = 0; index < trees.targets * kRows; ++index) sums[index] = 0;
  for (uint32_t leaf = 0; leaf < trees.most_leaves; ++leaf)
    for (size_t row = 0; row < kRows; ++row) slots[leaf * kRows + row] = Rank(leaf);
  const size_t padded = (count + 63) / 64 * 64;
  rank_rows(trees, rows, count, padded, ranks);
  for (size_t index = 0; index < trees.trees; ++index) {
    const Tree& tree = trees.tree[index];
    if (tree.kind == Tree::kSelect)
      select(trees, tree, ranks, padded, slots, sums);
    else if (tree.kind == Tree::kSymmetric)
      select_levels(trees, tree, ranks, padded, sums);
    else
      descend(trees, tree, ranks, padded, sums);
  }
  for (size_t row = 0; row < count; ++row)
    for (size_t target = 0; target < trees.targets; ++target)
      out[row * trees.targets + target] = float(sums[target * kRows + row] + trees.base[target]);
}

template <class T>
void compute_row(const Ensemble<T>& trees, const T* row, float* out, T* sums) {
  for (size_t target = 0; target < trees.targets; ++target) sums[target] = 0;
  for (size_t index = 0; index < trees.trees; ++index) {
    const Tree& tree = trees.tree[index];
    uint32_t position = tree.node;
    while (true) {
      const Node<T>& at = trees.node[position];
      if (at.left == position) break;
      const T number = row[at.feature & ~kMissingLeft];
      position = at.left;
      if (!(number <= at.cut) && (number == number || !(at.feature >> 31))) {
        __asm__ volatile("");  // A branch, which the CPU predicts, is faster than a selection.
        ++position;
      }
    }
    if (tree.targets == 1) {
      sums[trees.target[tree.target]] += trees.node[position].cut;
      continue;
    }
    const T* value = trees.value + tree.values + trees.leaf[position];
    for (uint32_t each = 0; each < tree.targets; ++each, value += tree.leaves)
      sums[trees.target[tree.target + each]] += *value;
  }
  for (size_t target = 0; target < trees.targets; ++target)
    out[target] = float(sums[target] + trees.base[target]);
}

template <class T>
void compute(const Ensemble<T>& trees, const T* rows, size_t count, float* out, char* memory) {
  if (!trees.is_ranked || count < kFewRows) {
    for (size_t row = 0; row < count; ++row)
      compute_row(trees, rows + row * trees.features, out + row * trees.targets,
                  reinterpret_cast<T*>(memory));
    return;
  }
  for (size_t row = 0; row < count; row += kRows) {
    const size_t here = count - row < kRows ? count - row : kRows;
    const T* from = rows + row * trees.features;
    float* to = out + row * trees.targets;
    if (trees.is_wide)
      compute_block<T, int16_t>(trees, from, here, to, memory);
    else
      compute_block<T, int8_t>(trees, from, here, to, memory);
  }
}

}  // namespace

void compute_single(const Ensemble<float>& trees, const float* rows, size_t count, float* out,
                    char* memory) {
  compute(trees, rows, count, out, memory);
}
void compute_double(const Ensemble<double>& trees, const double* rows, size_t count, float* out,
                    char* memory) {
  compute(trees, rows, count, out, memory);
}
}  // namespace LEVEL

#else  // the operator

#include <cpuid.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "ort_api.h"
#include "source.h"

#define DECLARE(level)                                                                        \
  namespace level {                                                                           \
  void compute_single(const Ensemble<float>&, const float*, size_t, float*, char*);           \
  void compute_double(const Ensemble<double>&, const double*, size_t, float*, char*);         \
  }
DECLARE(avx2)
DECLARE(avx512)

namespace {

// The level of the x86-64 instruction set (psABI) that the CPU and the system support: 4 (AVX-512),
// 3 (AVX2) or less. The compiler's own test needs libgcc, which zig does not link.
// ONNXSERVE_TREES_LEVEL, for tests and measurements, lowers it.
int cpu_level() {
  const char* limit = std::getenv("ONNXSERVE_TREES_LEVEL");
  const int most = limit ? std::atoi(limit) : 4;
  uint32_t a, b, c, d, features, extended;
  if (!__get_cpuid(1, &a, &b, &features, &d)) return 0;
  constexpr uint32_t kAvx = 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29;  // FMA to F16C
  if ((features & kAvx) != kAvx || !__get_cpuid_count(7, 0, &a, &extended, &c, &d)) return 0;
  constexpr uint32_t kAvx2 = 1u << 3 | 1u << 5 | 1u << 8;  // with BMI
  uint32_t saved, high;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if ((extended & kAvx2) != kAvx2 || (saved & 6) != 6) return 0;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & 1u << 5)) return 0;  // LZCNT
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  const bool has_avx512 = (extended & kAvx512) == kAvx512 && (saved & 0xe6) == 0xe6;
  return std::min(most, has_avx512 ? 4 : 3);
}

template <class T>
using Compute = void (*)(const Ensemble<T>&, const T*, size_t, float*, char*);

template <class T>
Compute<T> choose() {
  const bool has_avx512 = cpu_level() >= 4;
  if constexpr (std::is_same_v<T, float>)
    return has_avx512 ? avx512::compute_single : avx2::compute_single;
  else
    return has_avx512 ? avx512::compute_double : avx2::compute_double;
}

constexpr uint32_t kMostLeaves = 96;  // of a small tree
constexpr uint32_t kMostLevels = 16;  // of a symmetric tree

template <class T>
struct Forest {
  std::vector<Tree> tree;
  std::vector<Selection> selection;
  std::vector<Step> step;
  std::vector<Node<T>> node;
  std::vector<uint32_t> leaf;
  std::vector<T> value;
  std::vector<uint32_t> target;
  std::vector<Column> column;
  std::vector<T> cut;
  std::vector<T> base;
  Ensemble<T> ensemble{};
  // Ascending. The nodes and columns have positions in this list until the ranks are checked, so
  // that the rows of this check need no memory for the features between them.
  std::vector<uint32_t> used_features;
  size_t memory = 0;  // bytes that a block needs
  Compute<T> compute = choose<T>();

  explicit Forest(const Source<T>& source);

 private:
  void add_tree(const Source<T>& source, uint32_t root);
  void rank_columns();
  void check_ranks() const;
  void add_small(Tree& added);
  bool is_symmetric(const Tree& added) const;
  std::map<std::pair<uint32_t, bool>, uint32_t> column_of;
};

template <class T>
Forest<T>::Forest(const Source<T>& source) : base(source.base) {
  base.resize(size_t(source.targets));
  for (size_t at = 0; at < source.nodes(); ++at)
    if (source.modes[at] != Mode::kLeaf) used_features.push_back(uint32_t(source.features[at]));
  std::sort(used_features.begin(), used_features.end());
  used_features.erase(std::unique(used_features.begin(), used_features.end()), used_features.end());
  for (size_t index = 0; index + 1 < source.roots.size(); ++index)
    add_tree(source, source.roots[index]);
  rank_columns();
  for (Tree& each : tree) {
    if (!ensemble.is_ranked) break;
    if (is_symmetric(each)) {  // A single leaf is symmetric, without a level.
      each.kind = Tree::kSymmetric;
      if (each.leaves > 256) ensemble.is_wide = true;  // Leaves are numbered in the type of the ranks.
    } else if (each.leaves > kMostLeaves) {
      each.kind = Tree::kDescend;
    } else {
      each.kind = Tree::kSelect;
      ensemble.most_leaves = std::max(ensemble.most_leaves, each.leaves);
    }
  }
  if (ensemble.is_ranked)
    for (Tree& each : tree)
      if (each.kind != Tree::kDescend) add_small(each);
  value.resize(value.size() + 128);  // Vectors are loaded beyond the last leaf.
  ensemble.tree = tree.data();
  ensemble.trees = tree.size();
  ensemble.selection = selection.data();
  ensemble.step = step.data();
  ensemble.node = node.data();
  ensemble.leaf = leaf.data();
  ensemble.value = value.data();
  ensemble.target = target.data();
  ensemble.column = column.data();
  ensemble.columns = column.size();
  ensemble.cut = cut.data();
  ensemble.base = base.data();
  ensemble.targets = base.size();
  ensemble.features = used_features.size();
  memory = kRows * (base.size() * sizeof(T) + 2 * (2 * ensemble.most_leaves + column.size()));
  check_ranks();
  for (size_t index = 0; index < node.size(); ++index) {
    if (node[index].left == index) continue;
    const uint32_t missing_left = node[index].feature & kMissingLeft;
    node[index].feature = used_features[node[index].feature & ~kMissingLeft] | missing_left;
  }
  for (Column& each : column) each.feature = used_features[each.feature];
  ensemble.features = size_t(source.width);
}

// Number the nodes of a tree from the root, siblings next to each other and subtrees together.
template <class T>
void Forest<T>::add_tree(const Source<T>& source, uint32_t root) {
  Tree added{};
  added.node = uint32_t(node.size());
  struct Open {
    uint32_t at;
    size_t number;
  };
  std::vector<Open> open{{root, node.size()}};
  node.emplace_back();
  leaf.emplace_back();
  std::vector<uint32_t> leaves;
  while (!open.empty()) {
    const auto [at, number] = open.back();
    open.pop_back();
    const Mode mode = source.modes[at];
    if (mode == Mode::kLeaf) {
      const T single = source.leaf_weights[source.first_weights[at]].number;
      node[number] = {single, 0, uint32_t(number)};
      leaf[number] = uint32_t(leaves.size());
      leaves.push_back(at);
      continue;
    }
    T cut = source.cuts[at];
    if (mode == Mode::kLess || mode == Mode::kGreaterOrEqual)  // x < t is x <= the number below t
      cut = std::nextafter(cut, -std::numeric_limits<T>::infinity());
    const bool is_opposite = mode == Mode::kGreater || mode == Mode::kGreaterOrEqual;
    const bool tracks_true = !source.missing.empty() && source.missing[at] == 1;
    uint32_t left = source.trues[at];
    uint32_t right = source.falses[at];
    if (is_opposite) std::swap(left, right);
    const auto feature = std::lower_bound(used_features.begin(), used_features.end(),
                                          uint32_t(source.features[at]));
    node[number] = {cut,
                    uint32_t(feature - used_features.begin()) |
                        (tracks_true != is_opposite ? kMissingLeft : 0),
                    uint32_t(node.size())};
    open.push_back({right, node.size() + 1});
    open.push_back({left, node.size()});
    node.resize(node.size() + 2);
    leaf.resize(node.size());
    ++added.splits;
  }
  std::map<uint32_t, std::vector<T>> by_target;
  for (size_t index = 0; index < leaves.size(); ++index)
    for (uint32_t at = source.first_weights[leaves[index]];
         at < source.first_weights[leaves[index] + 1]; ++at) {
      auto& table = by_target[source.leaf_weights[at].target];
      table.resize(leaves.size());
      table[index] = source.leaf_weights[at].number;
    }
  added.leaves = uint32_t(leaves.size());
  added.values = uint32_t(value.size());
  added.target = uint32_t(target.size());
  added.targets = uint32_t(by_target.size());
  for (const auto& [id, table] : by_target) {
    target.push_back(id);
    value.insert(value.end(), table.begin(), table.end());
  }
  tree.push_back(added);
}

// Compare the block of rows whose numbers are thresholds, their neighbours and missing values with
// the rows one by one, which compare the original numbers.
template <class T>
void Forest<T>::check_ranks() const {
  const size_t features = ensemble.features;
  std::vector<T> rows(kRows * features, std::numeric_limits<T>::quiet_NaN());
  uint32_t random = 1;
  for (size_t row = 1; row < kRows; ++row)
    for (const Column& each : column) {
      random = random * 1664525 + 1013904223;
      const T number = cut[each.first + (random >> 12) % each.cuts];
      const T neighbours[] = {number, std::nextafter(number, std::numeric_limits<T>::infinity()),
                              std::nextafter(number, -std::numeric_limits<T>::infinity()),
                              random % 16 ? number : std::numeric_limits<T>::quiet_NaN()};
      rows[row * features + each.feature] = neighbours[random >> 30];
    }
  const std::unique_ptr<char[]> memory(new char[this->memory + 64]);
  char* aligned = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
  std::vector<float> together(kRows * ensemble.targets);
  std::vector<float> single(ensemble.targets);
  compute(ensemble, rows.data(), kRows, together.data(), aligned);
  for (size_t row = 0; row < kRows; ++row) {
    compute(ensemble, rows.data() + row * features, 1, single.data(), aligned);
    if (std::memcmp(single.data(), &together[row * single.size()], single.size() * sizeof(float)))
      ort::refuse("this CPU computes blocks of rows differently");
  }
}

// Replace the thresholds by ranks. Missing values have a rank, so a column whose nodes send them
// to both sides is ranked twice.
template <class T>
void Forest<T>::rank_columns() {
  std::map<std::pair<uint32_t, bool>, std::vector<T>> cuts_of;
  auto key_of = [](const Node<T>& each) {
    return std::pair{each.feature & ~kMissingLeft, bool(each.feature >> 31)};
  };
  auto is_leaf = [this](size_t index) { return node[index].left == index; };
  for (size_t index = 0; index < node.size(); ++index)
    if (!is_leaf(index)) cuts_of[key_of(node[index])].push_back(node[index].cut);
  ensemble.is_ranked = cuts_of.size() < 65536;
  for (auto& [key, cuts] : cuts_of) {
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    if (cuts.size() > 255) ensemble.is_wide = true;
    if (cuts.size() > 65535) ensemble.is_ranked = false;
    uint32_t width = 1;
    while (width < cuts.size()) width = width * 2 + 1;
    column_of[key] = uint32_t(column.size());
    column.push_back({key.first, uint32_t(cuts.size()), uint32_t(cut.size()), width,
                      key.second ? 0 : uint32_t(cuts.size())});
    cut.insert(cut.end(), cuts.begin(), cuts.end());
    cut.resize(cut.size() + width - cuts.size(), std::numeric_limits<T>::infinity());
  }
  if (!ensemble.is_ranked) return;
  for (const Tree& each : tree)
    for (size_t index = each.node; index < each.node + each.splits * 2 + 1; ++index) {
      Step added{0, 65535, uint32_t(node[index].left - each.node)};
      if (!is_leaf(index)) {
        const auto key = key_of(node[index]);
        const auto& cuts = cuts_of[key];
        added.column = uint16_t(column_of[key]);
        added.cut = uint16_t(std::lower_bound(cuts.begin(), cuts.end(), node[index].cut) -
                             cuts.begin());
      }
      step.push_back(added);
    }
}

template <class T>
bool Forest<T>::is_symmetric(const Tree& added) const {
  uint32_t levels = 0;
  while ((1u << levels) < added.leaves) ++levels;
  if (added.leaves != 1u << levels || levels == 1 || levels > kMostLevels) return false;
  std::vector<uint32_t> level{0};
  for (uint32_t depth = 0; depth < levels; ++depth) {
    const Step& first = step[added.node + level[0]];
    std::vector<uint32_t> below;
    for (uint32_t number : level) {
      const Step& at = step[added.node + number];
      if (at.left == number || at.column != first.column || at.cut != first.cut) return false;
      below.push_back(at.left);
      below.push_back(at.left + 1);
    }
    level = below;
  }
  return true;
}

template <class T>
void Forest<T>::add_small(Tree& added) {
  added.program = uint32_t(selection.size());
  const Step* at = &step[added.node];
  if (added.kind == Tree::kSymmetric) {
    added.splits = 0;
    for (uint32_t number = 0; at[number].left != number; number = at[number].left) {
      selection.push_back({at[number].column, at[number].cut, 0, 0});
      ++added.splits;
    }
    return;
  }
  // Children have higher numbers than their parents, so the order of evaluation is the opposite.
  std::vector<uint16_t> slot(added.splits * 2 + 1);
  uint16_t next = uint16_t(ensemble.most_leaves);
  for (size_t index = slot.size(); index--;) {
    if (at[index].left == index) {
      slot[index] = uint16_t(leaf[added.node + index]);
      continue;
    }
    selection.push_back({at[index].column, at[index].cut, slot[at[index].left],
                         slot[at[index].left + 1]});
    slot[index] = next++;
  }
}

template <class T>
struct Work {
  const Forest<T>& forest;
  Ensemble<T> trees;
  const T* rows;
  size_t count;
  float* out;
  size_t part = kRows;  // rows per part
  std::atomic<bool> lacks_memory{false};

  // Run a part. ONNX Runtime's threads call this function, so it must not throw.
  static void run(void* self, size_t index) noexcept {
    Work& work = *static_cast<Work*>(self);
    const Ensemble<T>& trees = work.trees;
    const size_t first = index * work.part;
    const size_t count = std::min(work.part, work.count - first);
    const size_t needed = count < kFewRows ? trees.targets * sizeof(T) : work.forest.memory;
    const std::unique_ptr<char[]> owner(new (std::nothrow) char[needed + 64]);
    if (!owner) {
      work.lacks_memory = true;
      return;
    }
    char* memory = owner.get() + (64 - reinterpret_cast<uintptr_t>(owner.get()) % 64);
    work.forest.compute(trees, work.rows + first * trees.features, count,
                        work.out + first * trees.targets, memory);
  }
};

template <class T>
struct Operator {
  ort::Api api;
  Forest<T> forest;

  Operator(ort::Api api, const ort::Info* info)
      : api(api), forest(Source<T>(ort::Attributes(api, info))) {}

  void compute(ort::Context* context) {
    const auto* reads = static_cast<const ort::Context*>(context);
    const ort::Value* input = nullptr;
    ort::check(api, ort::call<ort::kKernelContext_GetInput>(api, reads, size_t(0), &input));
    if (!input) ort::refuse("it has no rows");
    const ort::Shape shape = ort::shape_of(api, input);
    if (shape.type != (std::is_same_v<T, float> ? ort::kFloat : ort::kDouble))
      ort::refuse("the rows do not have the type of the trees");
    if (shape.rank != 2 || shape.sizes[0] < 0 || shape.sizes[1] < int64_t(forest.ensemble.features))
      ort::refuse("the rows do not have the features of the trees");
    const int64_t sizes[] = {shape.sizes[0], int64_t(forest.ensemble.targets)};
    ort::Value* output = nullptr;
    ort::check(api, ort::call<ort::kKernelContext_GetOutput>(api, context, size_t(0), &sizes[0],
                                                             size_t(2), &output));
    Work<T> work{forest, forest.ensemble, static_cast<const T*>(ort::data_of(api, input)),
                 size_t(sizes[0]), static_cast<float*>(ort::data_of(api, output))};
    work.trees.features = size_t(shape.sizes[1]);
    if (!work.count) return;
    if (work.count <= 2 * kRows) {  // less than threads need to start
      work.part = work.count;
      Work<T>::run(&work, 0);
    } else {
      const size_t parts = (work.count + work.part - 1) / work.part;
      ort::check(api, ort::call<ort::kKernelContext_ParallelFor>(
                          api, reads, &Work<T>::run, parts, size_t(0), static_cast<void*>(&work)));
    }
    if (work.lacks_memory) throw std::bad_alloc();
  }
};

// The fields of OrtCustomOp, in their order, up to API version 18.
struct CustomOp {
  uint32_t version = ort::kApiVersion;
  void* (*create_v1)(const CustomOp*, ort::Api, const ort::Info*) = nullptr;
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*inputs)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*outputs)(const CustomOp*);
  void (*compute_v1)(void*, ort::Context*) = nullptr;
  void (*destroy)(void*);
  int (*input_kind)(const CustomOp*, size_t);
  int (*output_kind)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_1)(const CustomOp*);
  int (*variadic_2)(const CustomOp*);
  int (*variadic_3)(const CustomOp*);
  int (*variadic_4)(const CustomOp*);
  ort::Status* (*create)(const CustomOp*, ort::Api, const ort::Info*, void**);
  ort::Status* (*compute)(void*, ort::Context*);
  ort::Status* (*infer)(const CustomOp*, void*) = nullptr;
  int (*start)(const CustomOp*);
  int (*end)(const CustomOp*);
  size_t (*may_inplace)(int**, int**) = nullptr;
  void (*release_may_inplace)(int*, int*) = nullptr;
  size_t (*alias)(int**, int**) = nullptr;
  void (*release_alias)(int*, int*) = nullptr;
};

// Return what `action` throws as a status, because no exception may cross the C interface.
template <class Action>
ort::Status* guarded(ort::Api api, Action action) noexcept {
  try {
    action();
  } catch (const std::exception& error) {
    return ort::failure(api, error.what());
  } catch (...) {
    return ort::failure(api, "unknown error");
  }
  return nullptr;
}

template <class T>
CustomOp custom_op() {
  constexpr int type = std::is_same_v<T, float> ? ort::kFloat : ort::kDouble;
  const auto one = [](const CustomOp*) -> size_t { return 1; };
  const auto zero = [](const CustomOp*, size_t) { return 0; };
  const auto arity = [](const CustomOp*) { return 1; };
  CustomOp op{};
  op.name = [](const CustomOp*) { return "TreeEnsembleRegressor"; };
  op.provider = [](const CustomOp*) -> const char* { return nullptr; };
  op.input_type = [](const CustomOp*, size_t) { return type; };
  op.output_type = [](const CustomOp*, size_t) { return int(ort::kFloat); };
  op.inputs = one;
  op.outputs = one;
  op.input_kind = zero;
  op.output_kind = zero;
  op.input_memory = zero;
  op.variadic_1 = op.variadic_2 = op.variadic_3 = op.variadic_4 = arity;
  op.start = arity;
  op.end = [](const CustomOp*) { return std::numeric_limits<int>::max(); };
  op.destroy = [](void* kernel) { delete static_cast<Operator<T>*>(kernel); };
  op.create = [](const CustomOp*, ort::Api api, const ort::Info* info, void** kernel) {
    return guarded(api, [&] { *kernel = new Operator<T>(api, info); });
  };
  op.compute = [](void* kernel, ort::Context* context) {
    auto* self = static_cast<Operator<T>*>(kernel);
    return guarded(self->api, [&] { self->compute(context); });
  };
  return op;
}

bool is_tested(const std::string& version) {
  std::istringstream tested(TESTED);
  for (std::string each; tested >> each;)
    if (version.rfind(each + '.', 0) == 0) return true;
  return false;
}

// The domain with the operators, which all sessions of the process share.
ort::Status* make_domain(ort::Api api, ort::Domain** domain) {
  static const CustomOp single = custom_op<float>();
  static const CustomOp wide = custom_op<double>();
  if (auto* status = ort::call<ort::kCreateCustomOpDomain>(api, "ai.onnx.ml", domain)) return status;
  if (auto* status = ort::call<ort::kCustomOpDomain_Add>(api, *domain, &single)) return status;
  return ort::call<ort::kCustomOpDomain_Add>(api, *domain, &wide);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::Options* options, const ort::ApiBase* base) {
  const ort::Api first = base->get(1);
  return guarded(first, [&] {
    const std::string version = base->version();
    if (!is_tested(version)) ort::refuse("it is not tested with ONNX Runtime " + version);
    if (cpu_level() < 3) ort::refuse("this CPU has no AVX2");
    const ort::Api api = base->get(ort::kApiVersion);
    static std::mutex mutex;
    static ort::Domain* domain = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!domain) {
      ort::Domain* made = nullptr;
      ort::check(api, make_domain(api, &made));
      domain = made;
    }
    ort::check(api, ort::call<ort::kAddCustomOpDomain>(api, options, domain));
  });
}

#endif
