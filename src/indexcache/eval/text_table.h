// Tables of figures for a terminal.
#pragma once

#include <string>
#include <vector>

namespace indexcache {

// Rows of cells, one line each, indented; columns are padded to their widest cell, the first is
// flush left, the others flush right. Rows may differ in length.
std::string text_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace indexcache
