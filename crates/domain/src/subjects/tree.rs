//! The tree of subjects. A path is a subject and its ancestors, nearest first, and has at most 8
//! levels.

use crate::base::fields::Violation;
use crate::base::limits::PATH_LEVELS_MAX;

/// Checks a change of parent. `parent_path` counts the new parent and its ancestors; `height` counts
/// the levels of the moved subtree, including its root; `is_below` means that the new parent lies in
/// that subtree.
pub fn validate_parent(parent_path: usize, height: usize, is_below: bool) -> Option<Violation> {
    let refuse = |code, detail: String| Some(Violation::new(code, detail).under("parent"));
    if is_below {
        return refuse(
            "subject_cycle",
            "must not be the subject itself or one of its descendants".to_owned(),
        );
    }
    if parent_path + height > PATH_LEVELS_MAX {
        return refuse(
            "subject_too_deep",
            format!("must not make a path of more than {PATH_LEVELS_MAX} levels"),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_cycles_and_a_ninth_level() {
        let code = |path, height, below| validate_parent(path, height, below).map(|violation| violation.code);
        assert_eq!(code(7, 1, false), None);
        assert_eq!(code(8, 1, false), Some("subject_too_deep"));
        assert_eq!(code(5, 4, false), Some("subject_too_deep"));
        assert_eq!(code(1, 1, true), Some("subject_cycle"));
    }
}
