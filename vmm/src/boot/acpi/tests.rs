//! The tables as a kernel walks them, and as iasl reads them.
