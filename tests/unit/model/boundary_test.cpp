#include "lib/model/boundary.h"

#include "tests/support/catch.h"

namespace mpinfer::model {

TEST_CASE(
    "pieces cover a step's rows, and memory for a larger step's summands is enough for them") {
  for (const int tp : {1, 2, 3, 4, 7, 8}) {
    int64_t memory_before = 0;
    int64_t failures = 0;
    for (int64_t rows = 1; rows < 20000; rows += rows < 9000 ? 1 : 11) {
      const std::vector<RowPiece> pieces = row_pieces(rows);
      int64_t end = 0;
      int64_t received = 0;
      for (const RowPiece& piece : pieces) {
        failures += piece.begin != end || piece.rows <= 0 ? 1 : 0;
        end += piece.rows;
        received += comm::received_rows(piece.rows, tp);
      }
      const int64_t memory = Boundary::received_rows(rows, tp);
      failures += end != rows || std::ssize(pieces) > kMostRowPieces ? 1 : 0;
      failures += pieces.size() > 1 && memory < received ? 1 : 0;
      failures += memory < memory_before ? 1 : 0;
      memory_before = memory;
    }
    CAPTURE(tp);
    CHECK(failures == 0);
    CHECK((Boundary::received_rows(20000, tp) == 0) == (tp == 1));
  }
  CHECK(row_pieces(kLeastRowsOfPieces - 1).size() == 1);
  CHECK(row_pieces(kLeastRowsOfPieces).size() == 3);
  CHECK(row_pieces(16384).size() == 4);
  CHECK(row_pieces(16384).back().rows == 4096);
}

}  // namespace mpinfer::model
