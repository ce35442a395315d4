// Functions as extensions have them: none knows of vmap.
#include <thread>
#include <torch/extension.h>

namespace calls {

using torch::Tensor;

// What a tensor says of itself.
int64_t numel(const Tensor& x) { return x.numel(); }
int64_t dim(const Tensor& x) { return x.dim(); }
int64_t size(const Tensor& x) { return x.size(0); }
std::vector<int64_t> sizes(const Tensor& x) { return x.sizes().vec(); }
std::vector<int64_t> strides(const Tensor& x) { return x.strides().vec(); }
int64_t storage_offset(const Tensor& x) { return x.storage_offset(); }
std::string dtype(const Tensor& x) { return std::string(x.dtype().name()); }
std::string device(const Tensor& x) { return x.device().str(); }
std::string options(const Tensor& x) { return std::string(x.options().dtype().name()); }
bool is_cpu(const Tensor& x) { return x.is_cpu(); }
bool is_contiguous(const Tensor& x) { return x.is_contiguous(); }
bool is_floating_point(const Tensor& x) { return x.is_floating_point(); }
bool is_defined(const Tensor& x) { return x.defined(); }
bool requires_grad(const Tensor& x) { return x.requires_grad(); }
int64_t element_size(const Tensor& x) { return x.element_size(); }
int64_t nbytes(const Tensor& x) { return x.nbytes(); }

// Its data.
bool data_ptr(const Tensor& x) { return x.data_ptr() != nullptr; }
bool mutable_data_ptr(const Tensor& x) { return x.mutable_data_ptr() != nullptr; }
bool const_data_ptr(const Tensor& x) { return x.const_data_ptr() != nullptr; }
double typed_data_ptr(const Tensor& x) { return x.data_ptr<float>()[0]; }
double typed_const_data_ptr(const Tensor& x) { return x.const_data_ptr<float>()[0]; }
bool storage(const Tensor& x) { return x.storage().data() != nullptr; }
double accessor(const Tensor& x) { return x.accessor<float, 1>()[1]; }
double packed_accessor(const Tensor& x) { return x.packed_accessor32<float, 1>()[1]; }
double item(const Tensor& x) { return x.sum().item<double>(); }
double item_of_it(const Tensor& x) { return x.item<double>(); }
double loop_over_data(const Tensor& x) {
  auto y = x.contiguous();
  const float* data = y.data_ptr<float>();
  double total = 0;
  for (int64_t i = 0; i < y.numel(); ++i) total += data[i];
  return total;
}
double checked_loop(const Tensor& x) {
  TORCH_CHECK_VALUE(x.scalar_type() == torch::kFloat, "expected float");
  return loop_over_data(x);
}

// What it computes.
Tensor add(const Tensor& a, const Tensor& b) { return a + b; }
Tensor mul_(Tensor a, const Tensor& b) { return a.mul_(b); }
Tensor add_out(Tensor out, const Tensor& a) { return torch::add_out(out, a, a); }
Tensor index_put_(Tensor a) { return a.index_put_({0}, 7.0); }
Tensor copy_(Tensor a, const Tensor& b) { return a.copy_(b); }
Tensor cat(const std::vector<Tensor>& xs) { return torch::cat(xs); }
Tensor twice(const std::optional<Tensor>& x) { return x.has_value() ? *x * 2 : torch::zeros({}); }
Tensor matmul(const Tensor& a, const Tensor& b) { return torch::matmul(a, b); }
Tensor slice(const Tensor& x) { return x.slice(0, 0, 2); }
Tensor to_double(const Tensor& x) { return x.to(torch::kDouble); }
Tensor empty_like(const Tensor& x) { return torch::empty_like(x).zero_(); }
Tensor with_options(const Tensor& x) { return torch::zeros({2}, x.options()); }
Tensor clone(const Tensor& x) { return x.clone(); }
Tensor detach(const Tensor& x) { return x.detach() * 1; }
Tensor tensor_data(const Tensor& x) { return x.tensor_data() * 1; }
Tensor variable_data(const Tensor& x) { return x.variable_data() * 1; }
Tensor set_requires_grad(const Tensor& x) { return x.clone().set_requires_grad(true); }
std::vector<Tensor> both(const Tensor& x) { return {x * 1, x * 2}; }
std::tuple<Tensor, Tensor> pair(const Tensor& x) { return {x * 1, x * 2}; }
std::map<std::string, Tensor> named(const Tensor& x) { return {{"x", x * 1}}; }
Tensor identity(Tensor x) { return x; }
Tensor call_back(const py::function& f, const Tensor& x) { return f(x).cast<Tensor>(); }
py::object call_back_with_object(const py::function& f, const py::object& x) { return f(x); }
Tensor without_gil(const Tensor& x) {
  py::gil_scoped_release release;
  Tensor own = x;
  return own * 2;
}
Tensor in_a_thread(const Tensor& x) {
  py::gil_scoped_release release;
  Tensor result;
  std::exception_ptr error;
  std::thread([&] {
    try {
      result = x * 2;
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
  return result;
}
struct Square : torch::autograd::Function<Square> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
    ctx->save_for_backward({x});
    return x * x;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list g) {
    return {g[0] * 2 * ctx->get_saved_variables()[0]};
  }
};
Tensor autograd_function(const Tensor& x) { return Square::apply(x); }
Tensor gradient(const Tensor& x) {
  auto own = x.detach().requires_grad_();
  return torch::autograd::grad({(own * own).sum()}, {own})[0];
}

// What keeps it.
std::vector<Tensor> kept;
std::vector<std::vector<Tensor>> lists;
void keep(Tensor x) { kept.push_back(std::move(x)); }
void keep_list(std::vector<Tensor> xs) { lists.push_back(std::move(xs)); }
void keep_without_gil(const Tensor& x) {
  py::gil_scoped_release release;
  kept.push_back(x);
}
int64_t number_kept() { return kept.size() + lists.size(); }
Tensor use_kept() { return (kept.empty() ? lists.back().back() : kept.back()) + 1; }
Tensor give_kept() { return kept.back(); }
void drop() {
  kept.clear();
  lists.clear();
}

// Operators, which PyTorch hands over.
Tensor scaled(const Tensor& x, double by) {
  TORCH_CHECK(x.scalar_type() == torch::kFloat);
  auto in = x.contiguous();
  auto out = torch::empty_like(in);
  for (int64_t i = 0; i < in.numel(); ++i) out.data_ptr<float>()[i] = in.const_data_ptr<float>()[i] * by;
  return out;
}
Tensor joined(at::TensorList xs, const std::optional<Tensor>& last) {
  auto all = xs.vec();
  if (last.has_value()) all.push_back(*last);
  return torch::cat(all);
}
void scale_(Tensor x, double by) { x.mul_(by); }
Tensor squared(const Tensor& x) { return x * x; }
Tensor squared_autograd(const Tensor& x) { return Square::apply(x); }

}  // namespace calls

TORCH_LIBRARY(vmap_extension, m) {
  m.def("scaled(Tensor x, float by) -> Tensor");
  m.def("joined(Tensor[] xs, Tensor? last=None) -> Tensor");
  m.def("scale_(Tensor(a!) x, float by) -> ()");
  m.def("squared(Tensor x) -> Tensor");
}
TORCH_LIBRARY_IMPL(vmap_extension, CPU, m) {
  m.impl("scaled", calls::scaled);
  m.impl("joined", calls::joined);
  m.impl("scale_", calls::scale_);
  m.impl("squared", calls::squared);
}
TORCH_LIBRARY_IMPL(vmap_extension, Autograd, m) { m.impl("squared", calls::squared_autograd); }

#define FUNCTIONS(F)                                                                                                    \
  F(numel) F(dim) F(size) F(sizes) F(strides) F(storage_offset) F(dtype) F(device) F(options) F(is_cpu)                  \
  F(is_contiguous) F(is_floating_point) F(is_defined) F(requires_grad) F(element_size) F(nbytes) F(data_ptr)             \
  F(mutable_data_ptr) F(const_data_ptr) F(typed_data_ptr) F(typed_const_data_ptr) F(storage) F(accessor)                 \
  F(packed_accessor) F(item) F(item_of_it) F(loop_over_data) F(checked_loop) F(add) F(mul_) F(add_out) F(index_put_)     \
  F(copy_) F(cat) F(twice) F(matmul) F(slice) F(to_double) F(empty_like) F(with_options) F(clone) F(detach)              \
  F(tensor_data) F(variable_data) F(set_requires_grad) F(both) F(pair) F(named) F(identity) F(call_back)                 \
  F(call_back_with_object) F(without_gil) F(in_a_thread) F(autograd_function) F(gradient) F(keep) F(keep_list)           \
  F(keep_without_gil) F(number_kept) F(use_kept) F(give_kept) F(drop)

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
#define DEFINE(name) m.def(#name, calls::name);
  FUNCTIONS(DEFINE)
}
