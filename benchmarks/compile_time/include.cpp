// SPDX-License-Identifier: Apache-2.0
// What including the library costs by itself.
#include <gqa/gqa.hpp>
