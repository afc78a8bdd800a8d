//! The tables whose changes are captured from PostgreSQL, and the checksum of one of their days.

/// The tables that are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    Users,
    Posts,
    Follows,
    Comments,
    Likes,
}

impl Table {
    pub const ALL: [Table; 5] = [
        Table::Users,
        Table::Posts,
        Table::Follows,
        Table::Comments,
        Table::Likes,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Users => "users",
            Table::Posts => "posts",
            Table::Follows => "follows",
            Table::Comments => "comments",
            Table::Likes => "likes",
        }
    }
}

/// The rows created on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Days since 1970-01-01.
    pub day: i64,
    pub rows: u64,
    pub sum: u64,
}
