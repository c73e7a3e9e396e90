//! Pages of lists.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cursor;
use crate::engine::error::EngineError;

/// Some rows of a list, and the cursor of the rows after them.
#[derive(Debug, Clone, Serialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    /// None on the last page.
    pub next_cursor: Option<String>,
}

/// The requested page of a list.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// The `next_cursor` of the previous page; none for the first page.
    pub cursor: Option<String>,
    pub limit: u32,
}

impl PageRequest {
    /// Returns the position after which the page begins, or none for the first page.
    pub fn place<P: DeserializeOwned>(&self) -> Result<Option<P>, EngineError> {
        self.cursor.as_deref().map(cursor::read).transpose()
    }

    /// Returns the number before which the page begins, in a list ordered by descending number.
    pub(crate) fn before_number(&self) -> Result<i64, EngineError> {
        Ok(self.place()?.unwrap_or(i64::MAX))
    }

    /// Returns the number of rows to ask for: one more than the page shows.
    pub(crate) fn rows_max(&self) -> u32 {
        self.limit.saturating_add(1)
    }
}

impl<T> Page<T> {
    /// Makes a page of up to `limit + 1` rows. The row beyond the limit shows that there is a next
    /// page.
    pub fn from_rows<C: Serialize>(mut rows: Vec<T>, limit: u32, place_of: impl Fn(&T) -> C) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| has_more).map(|row| cursor::write(&place_of(row)));
        Self { data: rows, next_cursor }
    }

    /// Returns the page with each of its rows converted.
    pub fn map<V>(self, view: impl FnMut(T) -> V) -> Page<V> {
        Page { data: self.data.into_iter().map(view).collect(), next_cursor: self.next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_beyond_the_limit_makes_a_next_page() {
        let full = Page::from_rows(vec![3, 2, 1], 3, |row| *row);
        assert_eq!((full.data, full.next_cursor), (vec![3, 2, 1], None));
        let cut = Page::from_rows(vec![3, 2, 1], 2, |row| *row);
        assert_eq!((cut.data, cut.next_cursor), (vec![3, 2], Some(cursor::write(&2))));
        assert_eq!(Page::from_rows(Vec::<u8>::new(), 2, |row| *row).next_cursor, None);
    }
}
