// Both questions, whether elements of one tensor share bytes and whether two tensors do, come down to one: whether
// sum(step * x), each x from 0 to its last, can lie in a window.
#include "overlap.h"

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <numeric>

namespace srmsnorm {
namespace {

using at::Tensor;

struct Term {
  int64_t step, last;  // in bytes: 0, step, ..., step * last; step > 0
};

using Terms = c10::SmallVector<Term, 16>;

// Sums to look at before views count as overlapping unseen: 0.1 ms. What slicing, transposing and packing make has
// strides that divide one another, and takes none.
constexpr int kMostWork = 5000;

int64_t total(const Terms& terms) {
  return std::accumulate(terms.begin(), terms.end(), int64_t{0},
                         [](int64_t sum, const Term& term) { return sum + term.step * term.last; });
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a sum of the terms, sorted by step, lies from `low` to `high`. Where work runs out, which its sign tells
// afterwards: true.
bool reaches(Terms terms, int64_t low, int64_t high, int& work) {
  int64_t most = total(terms);
  while (true) {
    if (high < 0 || low > most) return false;
    if (low <= 0 || high >= most) return true;
    // Sums are multiples of what divides all steps.
    int64_t divisor = 0;
    for (const auto& term : terms) divisor = std::gcd(divisor, term.step);
    low = ceil_div(low, divisor);
    high /= divisor;
    if (low > high) return false;
    most /= divisor;
    for (auto& term : terms) term.step /= divisor;
    // Steps no longer than the window leave no gap between its copies: one wide window.
    auto shortest = terms.front();
    if (shortest.step > high - low + 1) break;
    low -= shortest.step * shortest.last;
    most -= shortest.step * shortest.last;
    terms.erase(terms.begin());
  }
  auto longest = terms.pop_back_val();
  int64_t rest = most - longest.step * longest.last;
  int64_t least = std::max<int64_t>(ceil_div(low - rest, longest.step), 0);
  for (int64_t x = std::min(high / longest.step, longest.last); x >= least; x--)
    if (work-- <= 0 || reaches(terms, low - x * longest.step, high - x * longest.step, work)) return true;
  return false;
}

// Each step once: sums of multiples of one step are multiples of it.
Terms merged(const Terms& sorted) {
  Terms result;
  for (const auto& term : sorted) {
    if (!result.empty() && result.back().step == term.step)
      result.back().last += term.last;
    else if (term.last > 0)
      result.push_back(term);
  }
  return result;
}

void sort(Terms& terms) {
  std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) { return a.step < b.step; });
}

void add_terms(Terms& terms, const Tensor& tensor) {
  for (int64_t i = tensor.dim() - 1; i >= 0; i--)
    if (tensor.size(i) != 1) terms.push_back({tensor.stride(i) * tensor.element_size(), tensor.size(i) - 1});
}

// Two elements share bytes where their places differ by less than an element. Of the steps by which they differ the
// longest may be taken as positive, the others have either sign.
bool overlaps_itself(const Tensor& tensor, int& work) {
  if (tensor.is_contiguous()) return false;
  int64_t size = tensor.element_size(), reach = 0;
  Terms terms;
  add_terms(terms, tensor);
  sort(terms);
  for (size_t i = 0; i < terms.size(); i++) {
    auto [step, last] = terms[i];
    if (step == 0) return true;
    if (step < reach + size) {  // else it goes past all that shorter ones reach
      Terms differences;
      for (size_t j = 0; j < i; j++) differences.push_back({terms[j].step, 2 * terms[j].last});
      differences.push_back({step, last - 1});
      if (reaches(merged(differences), reach - step - size + 1, reach - step + size - 1, work)) return true;
    }
    reach += step * last;
  }
  return false;
}

int64_t begin(const Tensor& tensor) { return reinterpret_cast<int64_t>(tensor.const_data_ptr()); }

// The same for an element of a and one of b, whose terms are counted from its last element backwards.
bool overlap(const Tensor& a, const Tensor& b, int& work) {
  Terms terms;
  add_terms(terms, a);
  int64_t reach_a = total(terms);
  add_terms(terms, b);
  int64_t last_b = begin(b) - begin(a) + total(terms) - reach_a;
  int64_t low = last_b - a.element_size() + 1, high = last_b + b.element_size() - 1;
  if (high < 0 || low > total(terms)) return false;  // one behind the other
  sort(terms);
  return reaches(merged(terms), low, high, work);
}

const char* overlap_or_doubt(int work) {
  return work >= 0 ? "overlap in memory" : "may overlap in memory (their strides are too irregular to tell)";
}

void check_itself(const Tensor& tensor, const char* name, const char* what, int& work) {
  TORCH_CHECK(!overlaps_itself(tensor, work), "srmsnorm: ", name, " overwrites ", what, ", but elements of one ",
              overlap_or_doubt(work), ": sizes ", tensor.sizes(), ", strides ", tensor.strides());
}

void check_apart(const Tensor& a, const Tensor& b, const char* name, const char* what, int& work) {
  TORCH_CHECK(!overlap(a, b, work), "srmsnorm: ", name, " overwrites ", what, ", but they ", overlap_or_doubt(work),
              ": sizes ", a.sizes(), ", strides ", a.strides(), " and ", b.strides(), " in elements of ",
              a.element_size(), " and ", b.element_size(), " bytes, ", begin(b) - begin(a),
              " bytes from one to the other");
}

}  // namespace

void check_no_overlap(const Tensor& input, const Tensor& residual) {
  if (input.numel() == 0) return;
  int work = kMostWork;
  for (const auto* tensor : {&input, &residual}) check_itself(*tensor, "add_srms_norm_", "its operands", work);
  check_apart(input, residual, "add_srms_norm_", "its operands", work);
}

void check_no_overlap_of_written(const Tensor& residual, const Tensor& read, const char* name) {
  if (residual.numel() == 0) return;
  int work = kMostWork;
  check_itself(residual, name, "its residual", work);
  check_apart(read, residual, name, "its residual", work);
}

}  // namespace srmsnorm
