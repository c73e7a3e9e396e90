//! Pages of lists.

/// A page, and the cursor of the next if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Page<T> {
    pub(crate) rows: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Cuts rows, of which one more than `limit` was read, to a page. `cursor`: of the last row shown.
    pub(crate) fn from_rows(mut rows: Vec<T>, limit: usize, cursor: impl FnOnce(&T) -> String) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(cursor);
        Self { rows, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_with_more_behind_it_has_a_cursor() {
        let page = |rows: Vec<i32>| Page::from_rows(rows, 2, ToString::to_string);
        assert_eq!(page(vec![1, 2, 3]).next_cursor.as_deref(), Some("2"));
        assert_eq!(page(vec![1, 2, 3]).rows, [1, 2]);
        assert_eq!((page(vec![1, 2]).next_cursor, page(Vec::new()).next_cursor), (None, None));
    }
}
