// The attributes of TreeEnsembleRegressor as a model has them, and their check.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ort_api.h"

constexpr size_t kMostNodes = 1u << 28;    // and weights; positions have 32 bits
constexpr size_t kMostTargets = 1u << 14;  // A block of rows has a sum per row and target.
constexpr size_t kMostFilled = 8;  // A tree has a number for each leaf and each of its targets.

enum class Mode : uint8_t { kLeaf, kLess, kLessOrEqual, kGreater, kGreaterOrEqual };

template <class T>
struct Source {
  std::vector<int64_t> tree_ids, node_ids, features, true_ids, false_ids, missing;
  std::vector<std::string> mode_names;
  std::vector<T> cuts;
  std::vector<int64_t> weight_trees, weight_nodes, weight_targets;
  std::vector<T> weights;
  std::vector<T> base;
  int64_t targets;
  int64_t columns;  // of the input, or -1
  std::string post_transform, aggregate_function;

  // What `check` finds. A node is its position in the lists.
  std::vector<uint32_t> roots;  // of the trees, in their order, and the number of nodes
  std::vector<Mode> modes;
  int64_t width = 0;  // the number of columns that a row has at least
  std::vector<uint32_t> trues, falses;   // the children of each node
  std::vector<uint32_t> first_weights;   // of each node in `leaf_weights`, and their number
  struct Weight {
    uint32_t target;
    T number;
  };
  std::vector<Weight> leaf_weights;  // by node and target

  explicit Source(const ort::Attributes& attributes)
      : tree_ids(attributes.integers("nodes_treeids")),
        node_ids(attributes.integers("nodes_nodeids")),
        features(attributes.integers("nodes_featureids")),
        true_ids(attributes.integers("nodes_truenodeids")),
        false_ids(attributes.integers("nodes_falsenodeids")),
        missing(attributes.integers("nodes_missing_value_tracks_true")),
        mode_names(attributes.texts("nodes_modes")),
        cuts(attributes.numbers<T>("nodes_values")),
        weight_trees(attributes.integers("target_treeids")),
        weight_nodes(attributes.integers("target_nodeids")),
        weight_targets(attributes.integers("target_ids")),
        weights(attributes.numbers<T>("target_weights")),
        base(attributes.numbers<T>("base_values")),
        targets(attributes.integer("n_targets", 0)),
        columns(attributes.columns()),
        post_transform(attributes.text("post_transform", "NONE")),
        aggregate_function(attributes.text("aggregate_function", "SUM")) {
    check();
  }

  size_t nodes() const { return tree_ids.size(); }

 private:
  void check();
  void check_lengths() const;
  void check_nodes();
  void check_trees();
  void sort_weights(const std::vector<uint32_t>& owners);
};

// Refuse the attributes unless they describe trees. Afterwards, every position is within its list,
// and the bytes of a forest are bounded by the lengths of the lists.
template <class T>
void Source<T>::check() {
  check_lengths();
  check_nodes();
  check_trees();
}

template <class T>
void Source<T>::check_lengths() const {
  if (post_transform != "NONE") ort::refuse("its post_transform");
  if (aggregate_function != "SUM") ort::refuse("its aggregate_function");
  for (size_t size : {node_ids.size(), features.size(), true_ids.size(), false_ids.size(),
                      mode_names.size(), cuts.size()})
    if (size != nodes()) ort::refuse("its nodes are incomplete");
  if (!nodes() || nodes() > kMostNodes) ort::refuse("its number of nodes");
  if (!missing.empty() && missing.size() != nodes()) ort::refuse("its nodes are incomplete");
  for (size_t size : {weight_nodes.size(), weight_targets.size(), weights.size()})
    if (size != weight_trees.size()) ort::refuse("its weights are incomplete");
  if (weights.size() > kMostNodes) ort::refuse("its number of weights");
  if (targets < 1 || uint64_t(targets) > std::min(kMostTargets, nodes() + weights.size()))
    ort::refuse("its number of targets");
  if (!base.empty() && base.size() != size_t(targets)) ort::refuse("its base_values");
}

// Check what a node is without the others.
template <class T>
void Source<T>::check_nodes() {
  constexpr int64_t kMostId = std::numeric_limits<int32_t>::max();
  const int64_t most_features = columns >= 0 ? std::min(columns, kMostId) : kMostId;
  modes.reserve(nodes());
  const int64_t last_feature = *std::max_element(features.begin(), features.end());
  if (last_feature >= most_features) ort::refuse("its features");
  width = std::max<int64_t>(last_feature, 0) + 1;
  for (size_t node = 0; node < nodes(); ++node) {
    if (tree_ids[node] < 0 || tree_ids[node] > kMostId) ort::refuse("its tree ids");
    if (node_ids[node] < 0 || node_ids[node] >= int64_t(nodes())) ort::refuse("its node ids");
    const std::string& name = mode_names[node];
    if (name == "LEAF") {
      modes.push_back(Mode::kLeaf);
      continue;
    }
    if (name == "BRANCH_LEQ")
      modes.push_back(Mode::kLessOrEqual);
    else if (name == "BRANCH_LT")
      modes.push_back(Mode::kLess);
    else if (name == "BRANCH_GT")
      modes.push_back(Mode::kGreater);
    else if (name == "BRANCH_GTE")
      modes.push_back(Mode::kGreaterOrEqual);
    else
      ort::refuse("it splits by categories (" + name.substr(0, 20) + ")");
    if (features[node] < 0) ort::refuse("its features");
    if (cuts[node] != cuts[node]) ort::refuse("a threshold is NaN");
    const bool is_strict = modes.back() == Mode::kLess || modes.back() == Mode::kGreaterOrEqual;
    if (is_strict && cuts[node] == -std::numeric_limits<T>::infinity())
      ort::refuse("a threshold is -inf");
  }
}

// Check that the nodes of each tree are together, that each node is reached once from the first,
// and that each weight has a node.
template <class T>
void Source<T>::check_trees() {
  std::vector<std::pair<int64_t, uint32_t>> trees;  // their ids and positions
  for (size_t node = 0; node < nodes(); ++node)
    if (!node || tree_ids[node] != tree_ids[node - 1]) {
      trees.emplace_back(tree_ids[node], uint32_t(roots.size()));
      roots.push_back(uint32_t(node));
    }
  roots.push_back(uint32_t(nodes()));
  std::sort(trees.begin(), trees.end());
  const auto has_same_id = [](const auto& one, const auto& other) { return one.first == other.first; };
  if (std::adjacent_find(trees.begin(), trees.end(), has_same_id) != trees.end())
    ort::refuse("its trees are mixed");

  std::vector<uint32_t> weight_tree(weights.size());
  std::vector<uint32_t> weight_order(weights.size());
  for (size_t weight = 0; weight < weights.size(); ++weight) {
    weight_order[weight] = uint32_t(weight);
    if (weight && weight_trees[weight] == weight_trees[weight - 1]) {
      weight_tree[weight] = weight_tree[weight - 1];
      continue;
    }
    const std::pair<int64_t, uint32_t> wanted{weight_trees[weight], 0};
    const auto found = std::lower_bound(trees.begin(), trees.end(), wanted);
    if (found == trees.end() || found->first != wanted.first) ort::refuse("a weight has no tree");
    weight_tree[weight] = found->second;
  }
  if (!std::is_sorted(weight_tree.begin(), weight_tree.end()))
    std::stable_sort(weight_order.begin(), weight_order.end(),
                     [&](uint32_t one, uint32_t other) { return weight_tree[one] < weight_tree[other]; });

  trues.assign(nodes(), 0);
  falses.assign(nodes(), 0);
  std::vector<uint32_t> owners(weights.size());
  // The node of each id in the tree, or of an earlier tree.
  std::vector<uint32_t> node_of(nodes(), std::numeric_limits<uint32_t>::max());
  std::vector<bool> is_reached(nodes());
  std::vector<uint32_t> open;
  size_t weight = 0;
  for (uint32_t tree = 0; tree + 1 < roots.size(); ++tree) {
    const uint32_t root = roots[tree], end = roots[tree + 1];
    const auto find = [&](int64_t id) {
      const bool is_valid = id >= 0 && id < int64_t(nodes());
      const uint32_t found = is_valid ? node_of[size_t(id)] : end;
      if (found < root || found >= end) ort::refuse("a node is missing");
      return found;
    };
    for (uint32_t node = root; node < end; ++node) {
      uint32_t& known = node_of[size_t(node_ids[node])];
      if (known >= root && known < end) ort::refuse("two nodes have the same id");
      known = node;
    }
    open.push_back(root);
    uint32_t reached = 0;
    for (; !open.empty(); ++reached) {
      const uint32_t node = open.back();
      open.pop_back();
      if (is_reached[node]) ort::refuse("a node has two parents");
      is_reached[node] = true;
      if (modes[node] == Mode::kLeaf) continue;
      trues[node] = find(true_ids[node]);
      falses[node] = find(false_ids[node]);
      open.push_back(trues[node]);
      open.push_back(falses[node]);
    }
    if (reached != end - root) ort::refuse("a node has no parent");
    for (; weight < weights.size() && weight_tree[weight_order[weight]] == tree; ++weight)
      owners[weight_order[weight]] = find(weight_nodes[weight_order[weight]]);
  }
  sort_weights(owners);
}

// Sort the weights by their nodes `owners` and their targets, and check that each leaf has weights,
// at most one per target, and that the trees have not many more pairs of leaf and target than
// weights. The weights of inner nodes do not count.
template <class T>
void Source<T>::sort_weights(const std::vector<uint32_t>& owners) {
  first_weights.assign(nodes() + 1, 0);
  for (uint32_t owner : owners) ++first_weights[owner + 1];
  for (size_t node = 0; node < nodes(); ++node) first_weights[node + 1] += first_weights[node];
  leaf_weights.resize(weights.size());
  std::vector<uint32_t> next(first_weights.begin(), first_weights.end() - 1);
  for (size_t weight = 0; weight < weights.size(); ++weight) {
    const int64_t target = weight_targets[weight];
    if (target < 0 || target >= targets) ort::refuse("its targets");
    leaf_weights[next[owners[weight]]++] = {uint32_t(target), weights[weight]};
  }

  // Without a leaf for a target, ONNX Runtime's operator leaves its base value out.
  std::vector<bool> has_score(static_cast<size_t>(targets), base.empty() || targets == 1);
  std::vector<std::pair<uint32_t, uint32_t>> count(has_score.size());  // the tree from 1, its leaves
  const auto is_before = [](const Weight& one, const Weight& other) { return one.target < other.target; };
  uint64_t filled = 0;
  for (uint32_t tree = 0; tree + 1 < roots.size(); ++tree) {
    const auto leaves = (roots[tree + 1] - roots[tree] + 1) / 2;
    uint64_t tree_targets = 0;
    for (uint32_t node = roots[tree]; node < roots[tree + 1]; ++node) {
      if (modes[node] != Mode::kLeaf) continue;
      const auto begin = leaf_weights.begin() + first_weights[node];
      const auto end = leaf_weights.begin() + first_weights[node + 1];
      if (begin == end) ort::refuse("a leaf has no weight");
      if (!std::is_sorted(begin, end, is_before)) std::sort(begin, end, is_before);
      for (auto weight = begin; weight != end; ++weight) {
        if (weight != begin && weight->target == (weight - 1)->target)
          ort::refuse("a leaf has two weights for a target");
        auto& [last_tree, found] = count[weight->target];
        if (last_tree != tree + 1) {
          last_tree = tree + 1;
          found = 0;
          ++tree_targets;
        }
        if (++found == leaves) has_score[weight->target] = true;
      }
    }
    filled += leaves * tree_targets;
  }
  if (filled > kMostFilled * weights.size()) ort::refuse("its leaves have few of its targets");
  if (std::find(has_score.begin(), has_score.end(), false) != has_score.end())
    ort::refuse("a target has a base value, but not in all leaves of a tree");
}
